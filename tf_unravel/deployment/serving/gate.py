"""What every request passes: its body is read up to a limit, it waits for a core, and its faults become one line."""

import urllib.parse
from collections.abc import Callable

import anyio.to_thread
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from tf_unravel.machine import num_cores


class _TooLarge(ValueError):
    """A body above the limit."""


def refusal(status: int, line: str) -> Response:
    """A status, and {"error": line}."""
    return JSONResponse({"error": line}, status)


class Gate:
    """Answers requests of one server: as many are computed at a time as there are cores, the others wait.

    Args:
        max_bytes: of a request's body.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self.turns = anyio.CapacityLimiter(num_cores())

    async def answer(self, request: Request, compute: Callable[[bytes], Response]) -> Response:
        """compute(body), or a refusal: 403 to another site, 413 for a body above the limit, 400 for a ValueError."""
        origin = request.headers.get("origin")
        if origin and urllib.parse.urlsplit(origin).netloc != request.headers.get("host"):
            return refusal(403, f"only the server's own page is answered. Received: origin {origin[:100]}")
        try:
            body = await self._body(request)
            return await anyio.to_thread.run_sync(compute, body, limiter=self.turns)
        except ClientDisconnect:
            return refusal(400, "the request was broken off")  # nobody reads it
        except _TooLarge as error:
            return refusal(413, str(error))
        except ValueError as error:  # BadRequest, and what the model refuses
            return refusal(400, str(error))

    async def _body(self, request: Request) -> bytes:
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length) > self.max_bytes:
            raise _TooLarge(f"a request may have {self.max_bytes} bytes. Received: {length}")
        parts, size = [], 0
        async for part in request.stream():  # without a length it may be anything
            parts.append(part)
            size += len(part)
            if size > self.max_bytes:
                raise _TooLarge(f"a request may have {self.max_bytes} bytes. Received: {size} and more")
        return b"".join(parts)
