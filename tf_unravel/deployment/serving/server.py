"""A server for an exported model, over HTTP and in TensorFlow Serving's own REST protocol (`rest`), with a page.

    GET  /                            the page, see `page.routes`
    GET  /v1/models/<name>            whether it is there
    GET  /v1/models/<name>/metadata   its card and its signatures
    POST /v1/models/<name>:predict    an answer

TensorFlow Serving itself is no Python package. This is Starlette on uvicorn: small, well kept, and all that is needed
where the work is one call of a graph. A client written for one speaks to the other.

A bad request is answered 400 with one line; a body above the limit 413, before it is read to its end, and too many
images 413, before they are decoded; a request beyond the `AT_ONCE` that may be under way 503; one for a name that is
none of this machine's 403 (`hosts`). As many are computed at a time as there are cores, the others wait. No request can
end the server. It has neither encryption nor accounts nor a limit for slow clients: beyond this machine it belongs
behind a proxy that has.
"""

import contextlib
import gc
import logging
import math
import os
import pathlib
import socket
from collections.abc import Callable, Iterator, Sequence

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tf_unravel.deployment.model import Model
from tf_unravel.deployment.serving.gate import Gate, refusal
from tf_unravel.deployment.serving.hosts import OnlyNames, check_names, opened_at
from tf_unravel.deployment.serving.page.routes import page_routes
from tf_unravel.deployment.serving.rest import images_of, response_of, understood

AT_ONCE = 64

_log = logging.getLogger(__name__)


def name_of(path: str | os.PathLike) -> str:
    """What a model is called in its address: its folder's name, or the one above a version number (photos/1)."""
    folder = pathlib.Path(path).resolve()
    return folder.parent.name if folder.name.isdigit() else folder.name


class _Service:
    """The answers of one model; `name` is in its address."""

    def __init__(self, model: Model, name: str, gate: Gate):
        self.model, self.name, self.gate = model, name, gate

    async def status(self, request: Request) -> Response:
        return JSONResponse({"model_version_status": [
            {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        ]})

    async def metadata(self, request: Request) -> Response:
        signatures = {
            name: {side: {key: {"dtype": spec.dtype.name, "shape": spec.shape.as_list()} for key, spec in specs.items()}
                   for side, specs in (("inputs", function.structured_input_signature[1]),
                                       ("outputs", function.structured_outputs))}
            for name, function in self.model.signatures.items()
        }
        return JSONResponse({"model_spec": {"name": self.name}, "card": self.model.card, "signatures": signatures})

    async def predict(self, request: Request) -> Response:
        return await self.gate.answer(request, self._answer)

    async def unknown(self, request: Request, error: Exception) -> Response:
        """Another address, or another method."""
        status = error.status_code if isinstance(error, HTTPException) else 404
        model = f"/v1/models/{self.name}"
        return refusal(status, f"GET / is the page; GET {model}, GET {model}/metadata and POST {model}:predict are "
                                f"answered. Received: {request.method} {request.url.path}")

    def _answer(self, body: bytes) -> Response:
        call = understood(body, self.model.signatures)
        self.gate.admit(images_of(call))
        return JSONResponse(response_of(call, self.model.call(call.signature, call.inputs)))


async def _failed(request: Request, error: Exception) -> Response:
    _log.error("%s", error, exc_info=error)
    return refusal(500, "the server failed; its log says how")


def application(model: Model, name: str, max_bytes: int, hosts: Sequence[str] = ()) -> Starlette:
    """The ASGI application of a model.

    Args:
        model: the model.
        name: in its address.
        max_bytes: of a request's body.
        hosts: names that it answers to besides the machine's own, see `hosts`.
    """
    gate = Gate(max_bytes, math.prod(model.card["input"][side] for side in ("height", "width", "channels")))
    service = _Service(model, name, gate)
    return Starlette(
        routes=[
            Route(f"/v1/models/{name}", service.status),
            Route(f"/v1/models/{name}/metadata", service.metadata),
            Route(f"/v1/models/{name}:predict", service.predict, methods=["POST"]),
            *page_routes(model, name, gate),
        ],
        middleware=[Middleware(OnlyNames, names=hosts)],
        exception_handlers={HTTPException: service.unknown, Exception: _failed},
    )


@contextlib.contextmanager
def _short_collections() -> Iterator[None]:
    """Leaves what is there out of garbage collection: to walk all of TensorFlow holds every request for 0.2 s."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _listening(host: str, port: int) -> socket.socket:
    try:
        listening = socket.create_server((host, port))
        # asyncio does it for sockets that say they are TCP; without, an answer on a kept connection waits 40 ms.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]  # what follows repeats the address
        raise OSError(f"cannot listen at {host}:{port} ({reason}); --port=0 takes a port that is free") from error


def serve(
    path: str | os.PathLike, host: str = "127.0.0.1", port: int = 8501, max_mib: int = 16,
    ready: Callable[[Sequence[str]], None] = _log.info, allow_host: Sequence[str] = (),
) -> None:
    """Serves an exported model until it is stopped (Ctrl-C, SIGTERM), finishing the requests that it has begun.

    Args:
        path: the model's folder; only of one that you exported or trust.
        host: address to listen at; 127.0.0.1 is this machine alone.
        port: to listen at; 0 for a free one.
        max_mib: largest body of a request, MiB.
        ready: told the model's addresses, once requests are taken: this machine's first, then the network's if the
            server listens at all of them.
        allow_host: names that requests may be addressed to, besides localhost, `host` and the machine's own name: a
            proxy's.

    Raises:
        ValueError: no model is there, a limit below 1, no such port, or an `allow_host` that is no name.
        OSError: the port is taken.
    """
    if max_mib < 1:
        raise ValueError(f"--max_mib must be at least 1. Received: {max_mib}")
    if not 0 <= port <= 65535:
        raise ValueError(f"--port must be 0 to 65535, 0 for a free one. Received: {port}")
    check_names(allow_host)
    name = name_of(path)
    app = application(Model(path), name, max_mib << 20, [host, *allow_host])
    with _listening(host, port) as listening, _short_collections():
        port = listening.getsockname()[1]
        ready([f"http://{each}:{port}/v1/models/{name}" for each in opened_at(host)])
        config = uvicorn.Config(app, log_level="warning", limit_concurrency=AT_ONCE)
        uvicorn.Server(config).run(sockets=[listening])
