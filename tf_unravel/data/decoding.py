"""Decoding image files into rows of one uint8 array.

Any JPEG, PNG, BMP or WebP becomes RGB: greyscale, palette, 16-bit and CMYK images are converted, transparency is
composited on a background colour, the orientation in EXIF is applied. Pixels are written straight into the array.

Small images are bound by Pillow's Python code and not by its decoders, so threads gain nothing (55,000 images of 32x32
on two cores: 10 s with one thread, 15 s with two). Large sets are therefore decoded by worker processes that share the
array's file. A worker is this file alone, run by a bare interpreter: a `multiprocessing` child would import TensorFlow
first, and would ask the user's script for a `__main__` guard.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import queue
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, NamedTuple, cast

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".webp")
OTHER_PICTURES = (  # that people have, and that are not read
    ".heic", ".heif", ".avif", ".gif", ".tif", ".tiff", ".jp2", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".svg",
)  # fmt: skip
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
_ORIENTED = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")
_WORKER = "tf_unravel_decoding_worker"
_MOST_SIDE = 1 << 15  # pixels; with Pillow's limit on their product, known from the header before anything is decoded
_MOST_BYTES = 1 << 28  # of an image file
_FILES_PER_TASK = 128
_PROCESSES_FROM = 2048  # files; below it starting interpreters costs more than it gains


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How images become rows of an array.

    Args:
        size: (height, width) to resize to; None keeps each image's own.
        resize: name of the filter, one of `FILTERS`.
        crop: True cuts the largest centred part of the wanted shape out before resizing; False stretches.
        background: (red, green, blue), 0-255, behind transparent pixels.
    """

    size: tuple[int, ...] | None = None
    resize: str = "bilinear"
    crop: bool = False
    background: tuple[int, ...] = (255, 255, 255)

    def __post_init__(self) -> None:
        if self.resize not in FILTERS:
            raise ValueError(f"resize must be one of {', '.join(FILTERS)}. Received: {self.resize!r}.")
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise ValueError(f"image_size must be a number of pixels or (height, width). Received: {self.size}.")
        if len(self.background) != 3 or not all(0 <= value <= 255 for value in self.background):
            raise ValueError(f"background must be (red, green, blue), 0-255. Received: {self.background}.")


class Failure(NamedTuple):
    """A file that could not be used: its row, why, and its (height, width) if that alone is wrong."""

    row: int
    reason: str
    size: tuple[int, ...] | None = None


class UnusableImage(ValueError):
    """A file that cannot be used; the message says why and does not name it."""


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def decode(data: bytes, how: Decoding) -> np.ndarray:
    """One image file's bytes as uint8 [H, W, 3].

    Args:
        data: the file's bytes.
        how: size, filter and background.

    Returns:
        The image, upright.

    Raises:
        UnusableImage: not an image, damaged, truncated, larger than Pillow's limit against decompression bombs, or
            longer than 32,768 pixels on a side.
    """
    if not data:
        raise UnusableImage("the file is empty")
    if data[:64].lstrip().startswith(b"<"):
        raise UnusableImage("it starts with '<': a web page, not an image")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise UnusableImage(f"it has {image.width}x{image.height} pixels, more than the limit of {limit}")
            if max(image.size) > _MOST_SIDE:
                raise UnusableImage(f"it has {image.width}x{image.height} pixels, more than {_MOST_SIDE} on a side")
            image.load()
            return np.asarray(_prepared(image, how))
    except UnusableImage:
        raise
    except Image.DecompressionBombError as error:
        raise UnusableImage(f"it has more pixels than the limit of {Image.MAX_IMAGE_PIXELS}") from error
    except UnidentifiedImageError as error:
        raise UnusableImage("it is no JPEG, PNG, BMP or WebP image") from error
    except MemoryError:
        raise
    except Exception as error:  # damaged files make Pillow's plugins fail in many ways (OSError, SyntaxError, struct)
        what = " ".join(str(error).split()) or type(error).__name__
        raise UnusableImage(f"it is damaged ({what})") from error


def read_image_file(path: str | os.PathLike) -> bytes:
    """The bytes of an image file.

    Raises:
        UnusableImage: no file, such as a pipe, which would be waited for, or a device; or longer than 256 MiB.
        OSError: it cannot be read.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise UnusableImage("it is no file")
    if found.st_size > _MOST_BYTES:
        raise UnusableImage(f"it has more than {_MOST_BYTES >> 20} MiB")
    with open(path, "rb") as file:
        return file.read(found.st_size + 1)  # Python reserves as much as it is asked for


def _prepared(image: Image.Image, how: Decoding) -> Image.Image:
    """Upright, RGB, resized."""
    if any(name in image.info for name in _ORIENTED):
        image = ImageOps.exif_transpose(image)
    image = _rgb(image, how.background)
    if how.size is None:
        return image
    height, width = how.size
    if image.size == (width, height):
        return image
    if how.crop:
        return ImageOps.fit(image, (width, height), FILTERS[how.resize])
    return image.resize((width, height), FILTERS[how.resize])


def _rgb(image: Image.Image, background: tuple[int, ...]) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":  # 16-bit greyscale: Pillow's own conversion clips at 255
        values = np.clip(np.asarray(image, np.int64), 0, 65535)
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        canvas = Image.new("RGBA", image.size, (*background, 255))
        return Image.alpha_composite(canvas, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def decode_files(paths: Sequence[str], out: np.ndarray, how: Decoding) -> list[Failure]:
    """Decodes files into the rows of an array, with all cores.

    Args:
        paths: the files, row by row.
        out: uint8 [len(paths), H, W, 3], written in place. A writable `np.memmap` lets processes share it.
        how: see `Decoding`; images of another size than `out`'s, once resized, count as failures.

    Returns:
        Every file that could not be used, in the order of the rows; those rows are left as they were.

    Raises:
        ValueError: a worker process ended early.
    """
    cores = num_cores()
    starts = range(0, len(paths), _FILES_PER_TASK)
    ready = bool(sys.executable) and os.path.isfile(__file__)
    if len(paths) >= _PROCESSES_FROM and cores > 1 and ready and isinstance(out, np.memmap) and out.filename:
        return sorted(_decode_with_processes(paths, starts, out, how, cores), key=lambda failure: failure.row)
    with ThreadPoolExecutor(cores) as pool:
        tasks = [pool.submit(_decode_rows, paths[i : i + _FILES_PER_TASK], i, out, how) for i in starts]
        return [failure for task in tasks for failure in task.result()]


def _decode_rows(paths: Sequence[str], start: int, out: np.ndarray, how: Decoding) -> list[Failure]:
    failures = []
    for row, path in enumerate(paths, start):
        try:
            pixels = decode(read_image_file(path), how)
            if pixels.shape != out.shape[1:]:
                failures.append(Failure(row, "another size", pixels.shape[:2]))
            else:
                out[row] = pixels
        except OSError as error:
            failures.append(Failure(row, f"it cannot be read ({error.strerror or error})"))
        except UnusableImage as error:
            failures.append(Failure(row, str(error)))
    return failures


def _decode_with_processes(
    paths: Sequence[str], starts: Sequence[int], out: np.memmap, how: Decoding, cores: int
) -> list[Failure]:
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for start in starts:
        waiting.put(start)
    settings = {
        "file": os.path.abspath(str(out.filename)),
        "offset": out.offset,
        "shape": out.shape,
        "how": dataclasses.asdict(how),
    }
    failures: list[Failure] = []
    problems: list[str] = []
    workers = [_start_worker() for _ in range(min(cores, len(starts)))]

    def serve(worker: _Worker) -> None:
        try:
            _send(worker, settings)
            while not problems:
                start = waiting.get_nowait()
                _send(worker, [start, list(paths[start : start + _FILES_PER_TASK])])
                failures.extend(Failure(*failure) for failure in json.loads(worker.answers.readline()))
        except queue.Empty:
            pass
        except (OSError, ValueError) as error:  # a closed pipe, or an answer cut short
            problems.append(f"a decoding process ended early (exit code {worker.process.poll()}, {error}); load again.")

    threads = [threading.Thread(target=serve, args=(worker,), daemon=True) for worker in workers]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        problems.append("stopped")
        for worker in workers:
            worker.process.kill()
            worker.process.wait()
            worker.tasks.close()
            worker.answers.close()
    if len(problems) > 1:
        raise ValueError(problems[0])
    return failures


class _Worker(NamedTuple):
    process: subprocess.Popen[str]
    tasks: IO[str]
    answers: IO[str]


def _start_worker() -> _Worker:
    run = f"import runpy, sys; sys.path[:] = sys.argv[2:]; runpy.run_path(sys.argv[1], run_name={_WORKER!r})"
    arguments = [sys.executable, "-c", run, os.path.abspath(__file__), *(p for p in sys.path if p)]
    process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="ascii")
    return _Worker(process, cast(IO[str], process.stdin), cast(IO[str], process.stdout))


def _send(worker: _Worker, message: object) -> None:
    worker.tasks.write(json.dumps(message) + "\n")  # ASCII: names that are no valid text survive as \udcxx
    worker.tasks.flush()


def _work() -> None:
    """A worker: reads tasks from standard input until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    settings = json.loads(sys.stdin.readline())
    shape, how = tuple(settings["shape"]), settings["how"]
    out = np.memmap(settings["file"], np.uint8, "r+", settings["offset"], shape)
    how = Decoding(how["size"] and tuple(how["size"]), how["resize"], how["crop"], tuple(how["background"]))
    for line in sys.stdin:
        start, paths = json.loads(line)
        sys.stdout.write(json.dumps(_decode_rows(paths, start, out, how)) + "\n")
        sys.stdout.flush()


if __name__ == _WORKER:
    _work()
