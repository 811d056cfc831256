"""Decoding image files into rows of one uint8 array.

Any JPEG, PNG, BMP, WebP or PPM becomes RGB: greyscale, palette, 16-bit and CMYK images are converted, transparency is
composited on a background colour, the orientation in EXIF is applied, and of an animation the first frame is taken.
Pixels are written straight into the array.

16-bit samples v become v >> (bits - 8). Cameras and microscopes put 8, 10, 12 or 14 bits into 16 without a word in the
file; scaled as 16 they come out nearly black. An image cannot tell that from a dark scene, so nothing is guessed: the
brightest value of every 16-bit file is reported, and `warn_of_dim` says when all of a class are suspiciously dark.

Small images are bound by Pillow's Python code and not by its decoders, so threads gain nothing (55,000 images of 32x32
on two cores: 10 s with one thread, 15 s with two). Large sets are therefore decoded by worker processes that share the
array's file: plain interpreters, as a `multiprocessing` child asks the user's script for a `__main__` guard.
"""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from tf_unravel.data.storage import digests, formats
from tf_unravel.machine import num_cores

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "DIB")
_ORIENTED = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")
_WORKER = "import sys; sys.path[:] = sys.argv[1:]; from tf_unravel.data.storage import decoding; decoding.work()"
MOST_SIDE = 1 << 15  # pixels; with Pillow's limit on their product, known from the header before anything is decoded
_MOST_BYTES = 1 << 28  # of an image file
_FILES_PER_TASK = 128
_PROCESSES_FROM = 2048  # files; below it starting interpreters costs more than it gains
DIM = 1 << 14  # of 16-bit images: below it nothing has a quarter of the full brightness
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How images become rows of an array.

    Args:
        size: (height, width) to resize to; None keeps each image's own.
        resize: name of the filter, one of `FILTERS`.
        crop: True cuts the largest centred part of the wanted shape out before resizing; False stretches.
        background: (red, green, blue), 0-255, behind transparent pixels.
        bits: how many bits of 16-bit images hold their values, 8 to 16; None takes 16, and warns of images that are
            suspiciously dark. Images that say so themselves (PPM's maximum) and 8-bit ones are not affected.
    """

    size: tuple[int, ...] | None = None
    resize: str = "bilinear"
    crop: bool = False
    background: tuple[int, ...] = (255, 255, 255)
    bits: int | None = None

    def __post_init__(self) -> None:
        if self.resize not in FILTERS:
            raise ValueError(f"resize must be one of {', '.join(FILTERS)}. Received: {self.resize!r}.")
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise ValueError(f"image_size must be a number of pixels or (height, width). Received: {self.size}.")
        if len(self.background) != 3 or not all(0 <= value <= 255 for value in self.background):
            raise ValueError(f"background must be (red, green, blue), 0-255. Received: {self.background}.")
        if self.bits is not None and (type(self.bits) is not int or not 8 <= self.bits <= 16):
            raise ValueError(f"bits must be None or a whole number from 8 to 16. Received: {self.bits!r}.")


class Failure(NamedTuple):
    """A file that could not be used: its row, why, and its (height, width) if that alone is wrong."""

    row: int
    reason: str
    size: tuple[int, ...] | None = None


class UnusableImage(ValueError):
    """A file that cannot be used; the message says why and does not name it."""


def decode(data: bytes, how: Decoding) -> tuple[np.ndarray, int | None]:
    """One image file's bytes as uint8 [H, W, 3], upright, and the brightest value stored if it has 16 bits, else None.

    Raises:
        UnusableImage: not an image of a format that is read, damaged, truncated, of floats, brighter than `how.bits`
            allow, larger than Pillow's limit against decompression bombs, or longer than 32,768 pixels on a side.
    """
    if not data:
        raise UnusableImage("the file is empty")
    if digests.is_html(data):
        raise UnusableImage("it starts with '<': a web page, not an image")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise UnusableImage(f"it has {image.width}x{image.height} pixels, more than the limit of {limit}")
            if max(image.size) > MOST_SIDE:
                raise UnusableImage(f"it has {image.width}x{image.height} pixels, more than {MOST_SIDE} on a side")
            layout = _sixteen_bit_layout(image)
            image.load()
            shallow, brightest = _eight_bits(_upright(image), layout, how.bits or 16, data)
            return np.asarray(_resized(_rgb(shallow, how.background), how)), brightest
    except UnusableImage:
        raise
    except Image.DecompressionBombError as error:
        raise UnusableImage(f"it has more pixels than the limit of {Image.MAX_IMAGE_PIXELS}") from error
    except UnidentifiedImageError as error:
        found = formats.format_of(data[:256])
        what = f"it is a {found} image, which is not" if found else "it is no image, not"
        raise UnusableImage(f"{what} one of {formats.READ}") from error
    except MemoryError:
        raise
    except Exception as error:  # damaged files make Pillow's plugins fail in many ways (OSError, SyntaxError, struct)
        what = " ".join(str(error).split()) or type(error).__name__
        raise UnusableImage(f"it is damaged ({what})") from error


def warn_of_dim(name: str, brightest: Collection[int], how: Decoding, setting: str) -> None:
    """Warns of 16-bit images none of which reaches a quarter of the full brightness, unless `how.bits` is given.

    Args:
        name: where they are, for the message.
        brightest: the brightest value stored of each 16-bit image of one kind, such as a class.
        how: what they were decoded by.
        setting: what sets the number of bits, with "{bits}" in its place.
    """
    most = max(brightest, default=DIM)
    if how.bits is None and most < DIM:
        bits = next(bits for bits in (8, 10, 12, 14) if most < 1 << bits)
        _log.warning("%s: 16-bit images come out nearly black (%d of them, with no value above %d of 65535); if they "
                     "hold %d bits, set %s; if they are this dark, %s.",
                     name, len(brightest), most, bits, setting.format(bits=bits), setting.format(bits=16))  # fmt: skip


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


def _upright(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image) if any(name in image.info for name in _ORIENTED) else image


def _resized(image: Image.Image, how: Decoding) -> Image.Image:
    if how.size is None:
        return image
    size = how.size[1], how.size[0]
    if image.size == size:
        return image
    return (ImageOps.fit if how.crop else Image.Image.resize)(image, size, FILTERS[how.resize])


def _sixteen_bit_layout(image: ImageFile.ImageFile) -> str:
    """How a file that is not loaded yet stores 16-bit samples; "" where there are 8, or where it says its maximum."""
    if not image.tile:
        return ""
    codec, _, _, arguments = image.tile[0]
    layout, *more = arguments if isinstance(arguments, tuple) else (arguments,)
    if codec.startswith("ppm"):
        return f"{layout};ppm" if more[:1] == [65535] else ""
    return layout if isinstance(layout, str) and layout.endswith(";16B") else ""


def _eight_bits(image: Image.Image, layout: str, bits: int, data: bytes) -> tuple[Image.Image, int | None]:
    """An image with 8 bits a channel, and the brightest value stored of one that had 16.

    Args:
        image: loaded, upright; of more channels than one Pillow keeps the high bytes only.
        layout: by `_sixteen_bit_layout`.
        bits: how many of 16 bits hold values.
        data: the file, for the low bytes that Pillow left out.

    Raises:
        UnusableImage: values that do not fit the bits, or floats.
    """
    if image.mode == "F":
        raise UnusableImage("it holds floating-point values; convert it to 8 or 16 bits")
    if image.mode.startswith("I"):  # Pillow's own conversion clips at 255
        values = np.clip(np.asarray(image, np.int32), 0, 65535)
        if not layout:  # Pillow scaled them by the file's own maximum
            return Image.fromarray((values >> 8).astype(np.uint8)), None
        return Image.fromarray(_shifted(values, bits)), int(values.max())
    if not layout:
        return image, None
    high = np.asarray(image)
    if bits == 16:
        return image, int(high[..., :3].max()) << 8 | 255
    if layout not in ("RGB;16B", "RGBA;16B"):
        raise UnusableImage(f"bits={bits} is for grey, RGB and RGBA PNG files and for PGM; convert it")
    values = high[..., :3].astype(np.int32) << 8 | np.asarray(_low_bytes(data))[..., :3]
    return Image.fromarray(np.concatenate([_shifted(values, bits), high[..., 3:]], axis=-1)), int(values.max())


def _shifted(values: np.ndarray, bits: int) -> np.ndarray:
    if values.max() >> bits:
        raise UnusableImage(f"it has values up to {values.max()}, more than bits={bits} can hold ({(1 << bits) - 1})")
    return (values >> (bits - 8)).astype(np.uint8)


def _low_bytes(data: bytes) -> Image.Image:
    """The low bytes of a 16-bit RGB or RGBA PNG: the high ones, if it were stored in the other byte order."""
    image = Image.open(io.BytesIO(data), formats=("PNG",))
    other_order: Any = [(*tile[:3], str(tile[3]).replace("16B", "16L")) for tile in image.tile]
    image.tile = other_order
    image.load()
    return _upright(image)


def _rgb(image: Image.Image, background: tuple[int, ...]) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        canvas = Image.new("RGBA", image.size, (*background, 255))
        return Image.alpha_composite(canvas, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def decode_files(paths: Sequence[str], out: np.ndarray, how: Decoding) -> tuple[list[Failure], dict[int, int]]:
    """Decodes files into the rows of an array, with all cores.

    Args:
        paths: the files, row by row.
        out: uint8 [len(paths), H, W, 3], written in place. A writable `np.memmap` lets processes share it.
        how: see `Decoding`; images of another size than `out`'s, once resized, count as failures.

    Returns:
        (a `Failure` for every file that could not be used, whose row is left as it was, row -> brightest value stored
        of the other files with 16 bits a channel), both in the order of the rows.

    Raises:
        ValueError: a worker process ended early.
    """
    cores = num_cores()
    parts = [(i, paths[i : i + _FILES_PER_TASK]) for i in range(0, len(paths), _FILES_PER_TASK)]
    if len(paths) >= _PROCESSES_FROM and cores > 1 and sys.executable and isinstance(out, np.memmap) and out.filename:
        found = sorted(_decode_with_processes(parts, out, how, min(cores, len(parts))))
    else:
        with ThreadPoolExecutor(cores) as pool:
            tasks = [pool.submit(_decode_rows, start, part, out, how) for start, part in parts]
            found = [each for task in tasks for each in task.result()]
    failures = [Failure(row, *said) for row, *said in found if isinstance(said[0], str)]
    return failures, {row: said[0] for row, *said in found if isinstance(said[0], int)}


def _decode_rows(start: int, paths: Sequence[str], out: np.ndarray, how: Decoding) -> list[tuple[Any, ...]]:
    """Decodes files into rows from `start` on; returns a `Failure`, or (row, brightest value), where there is one."""
    found: list[tuple[Any, ...]] = []
    for row, path in enumerate(paths, start):
        try:
            pixels, brightest = decode(read_image_file(path), how)
            if pixels.shape != out.shape[1:]:
                found.append(Failure(row, "another size", pixels.shape[:2]))
                continue
            out[row] = pixels
            if brightest is not None:
                found.append((row, brightest))
        except OSError as error:
            found.append(Failure(row, f"it cannot be read ({error.strerror or error})"))
        except UnusableImage as error:
            found.append(Failure(row, str(error)))
    return found


def _decode_with_processes(
    parts: Sequence[tuple[int, Sequence[str]]], out: np.memmap, how: Decoding, count: int
) -> list[tuple[Any, ...]]:
    """`_decode_rows` of every (start, paths); worker i of `count` has parts i, i + count, ..."""
    array = (os.path.abspath(str(out.filename)), "uint8", "r+", out.offset, out.shape)
    tasks = [json.dumps([parts[number::count], array, dataclasses.asdict(how)]) for number in range(count)]
    command = [sys.executable, "-c", _WORKER, *filter(None, sys.path)]
    workers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="ascii")
               for _ in range(count)]  # fmt: skip
    found: list[tuple[Any, ...]] = []
    with ThreadPoolExecutor(count) as pool:
        try:
            answers = pool.map(lambda worker, task: worker.communicate(task)[0], workers, tasks)
            for worker, answer in zip(workers, answers, strict=True):
                if worker.returncode or not answer:
                    raise ValueError(f"a decoding process ended early (exit code {worker.returncode}); load again.")
                found += (tuple(each) for line in answer.splitlines() for each in json.loads(line))
        finally:
            for worker in workers:
                worker.kill()
    return found


def work() -> None:
    """A worker process: reads what to decode from standard input and writes what `_decode_rows` finds, part by part."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    parts, array, how = json.load(sys.stdin)  # ASCII: names that are no valid text survive as \udcxx
    out = np.memmap(*array)
    for start, paths in parts:
        print(json.dumps(_decode_rows(start, paths, out, Decoding(**how))), flush=True)  # fails once the parent is gone
