"""`evaluate --model` and `measure --model` on a folder of very many images: peak memory, and what each image adds.

Decoded images and their features lie in files of the cache, which are mapped. What counts is therefore the anonymous
memory of the command and its decoding processes: pages of files are given back when others need the room. An image may
add its bookkeeping (paths, digests, norms), neither its pixels nor its features. Images and cache are in the folder for
temporary files (TMPDIR), which takes 16 GB with 100,000 images of 224x224.

The network is a mean over squares of the image: what is measured does not depend on it, and it costs little.
"""

import io
import json
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from PIL import Image

from tf_unravel import deployment, heads
from tf_unravel.reproduction.benchmark.child import run_module
from tf_unravel.reproduction.benchmark.measurement import Measurement, Target
from tf_unravel.reproduction.benchmark.photographs import colours, photograph

_PROCESS = "tf_unravel.reproduction.benchmark.many_images_process"
_SQUARES = 16  # a side: features of 3 KiB
_MOST_KIB = 2.0  # an image


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Args:
        counts: of images, few and many.
        classes: that they are in.
        file_side: of the files.
        side: of the network's images, that they are enlarged to.
    """

    counts: Sequence[int] = (10_000, 100_000)
    classes: int = 100
    file_side: int = 32
    side: int = 224


FULL = Sizes()
QUICK = Sizes((125, 150), 5, 16, 32)


def measure(sizes: Sizes) -> Iterator[Measurement]:
    """Seconds and peak memory at each number of images, then what each image adds to the latter."""
    peaks = []
    for count in sizes.counts:
        with tempfile.TemporaryDirectory() as folder:
            found = _outcome(sizes, count, pathlib.Path(folder))
        what = f"evaluate and measure --model, {count:,} images of {sizes.side}x{sizes.side}"
        yield Measurement(what, "s", (found["seconds"],))
        if found["peak_bytes"] is not None:  # on Linux
            peaks.append(found["peak_bytes"])
            yield Measurement(f"{what}: peak memory", "GiB", (peaks[-1] / 2**30,))
    if len(peaks) > 1:
        growth = (peaks[-1] - peaks[0]) / (sizes.counts[-1] - sizes.counts[0]) / 1024
        what = f"peak memory for each image from {sizes.counts[0]:,} to {sizes.counts[-1]:,}"
        most = Target(_MOST_KIB, at_least=False, of_ratio=False)
        yield Measurement(what, "KiB", (growth,), (3 * sizes.side**2 / 1024,), "its pixels", most)


def _outcome(sizes: Sizes, count: int, folder: pathlib.Path) -> dict[str, Any]:
    write_images(folder / "images", count, sizes.classes, sizes.file_side)
    square = sizes.side // _SQUARES
    network = keras.Sequential([keras.Input((sizes.side, sizes.side, 3)), keras.layers.Rescaling(1 / 255),
                                keras.layers.AveragePooling2D(square), keras.layers.Flatten()])
    model = deployment.export(network, heads.Ridge(), folder / "model")
    given = {"model": str(model), "data_root": str(folder / "images"), "out": str(folder / "out"),
             "cache": str(folder / "cache")}
    return dict(run_module(_PROCESS, json.dumps(given)))


def write_images(root: pathlib.Path, count: int, classes: int, side: int) -> None:
    """Writes root/<class>/<number>.jpg, of each class one image over and over: the files differ by a comment."""
    rng = np.random.default_rng(0)
    files = []
    for label in range(classes):
        (root / f"{label:04d}").mkdir(parents=True)
        file = io.BytesIO()
        Image.fromarray(photograph(rng, colours(rng), side, side)).save(file, "JPEG", quality=85)
        files.append(file.getvalue())
    for number in range(count):
        data, comment = files[number % classes], number.to_bytes(8, "big")
        marked = data[:2] + b"\xff\xfe" + (2 + len(comment)).to_bytes(2, "big") + comment + data[2:]
        (root / f"{number % classes:04d}" / f"{number:07d}.jpg").write_bytes(marked)
