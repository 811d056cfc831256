"""What every request passes: its body is read up to a limit, it waits for a core, and its faults become one line."""

import urllib.parse
from collections.abc import Callable

import anyio.to_thread
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from tf_unravel.machine import num_cores

MOST_IMAGES = 10_000
"""Of a request, or as many features: heads compare each labelled image with every other one."""
_DECODED = 2  # bytes of pixels for one of a body; networks take 30 to 300 times the memory of the pixels they are given


class _TooLarge(ValueError):
    """A body above the limit, or too many images in it."""


def refusal(status: int, line: str) -> Response:
    """A status, and {"error": line}."""
    return JSONResponse({"error": line}, status)


class Gate:
    """Answers requests of one server: as many are computed at a time as there are cores, the others wait.

    Args:
        max_bytes: of a request's body.
        image_bytes: of an image's pixels as the model takes them, uint8 [H, W, C]; 0 if they are not resized.

    Attributes:
        max_images: of a request, so that their pixels are at most twice `max_bytes`: a file of 70 bytes may become
            any of them.
    """

    def __init__(self, max_bytes: int, image_bytes: int):
        self.max_bytes = max_bytes
        self.max_images = max(1, min(MOST_IMAGES, _DECODED * max_bytes // max(1, image_bytes)))
        self.turns = anyio.CapacityLimiter(num_cores())

    async def answer(self, request: Request, compute: Callable[[bytes], Response]) -> Response:
        """compute(body), or a refusal: 403 to another site, 413 for what is above a limit, 400 for a ValueError."""
        origin = request.headers.get("origin")
        if origin and urllib.parse.urlsplit(origin).netloc != request.headers.get("host"):
            return refusal(403, "only the server's own page is answered; a proxy must pass the header Host on. "
                                f"Received: origin {origin[:100]}")
        try:
            body = await self._body(request)
            return await anyio.to_thread.run_sync(compute, body, limiter=self.turns)
        except ClientDisconnect:
            return refusal(400, "the request was broken off")  # nobody reads it
        except _TooLarge as error:
            return refusal(413, str(error))
        except ValueError as error:  # BadRequest, and what the model refuses
            return refusal(400, str(error))

    def admit(self, images: int) -> None:
        """Refuses more images than a request may have, before they are decoded; the answer is 413."""
        self._at_most(self.max_images, images, "images of this model's size; send fewer, or raise --max_mib")

    def admit_features(self, rows: int) -> None:
        """The same for images given as their features."""
        self._at_most(MOST_IMAGES, rows, "images; send fewer")

    def _at_most(self, most: int, count: int, of_what: str) -> None:
        if count > most:
            raise _TooLarge(f"a request may have {most} {of_what}. Received: {count}")

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
