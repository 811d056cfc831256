"""Images that look like photographs to a codec and a network, as files: smooth fields of colours with some grain."""

import io
from typing import Any

import numpy as np
from PIL import Image

_GRID = 6  # colours a side
_GRAIN = 4.0  # its standard deviation in grey levels, about that of a camera

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "JPEG 4:2:0": ("JPEG", {"quality": 85, "subsampling": "4:2:0"}),
    "JPEG 4:4:4": ("JPEG", {"quality": 85, "subsampling": "4:4:4"}),
    "PNG": ("PNG", {}),
    "BMP": ("BMP", {}),
}


def colours(rng: np.random.Generator) -> np.ndarray:
    """What the images of one class have in common, float [g, g, 3]."""
    return rng.uniform(0, 255, (_GRID, _GRID, 3))


def photograph(rng: np.random.Generator, of: np.ndarray, height: int, width: int) -> np.ndarray:
    """An image uint8 [height, width, 3] of the class whose `colours` are given."""
    own = np.clip(of + rng.normal(0, 40, of.shape), 0, 255).astype(np.uint8)
    smooth = Image.fromarray(own).resize((width, height), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(smooth) + rng.normal(0, _GRAIN, (height, width, 3)), 0, 255).astype(np.uint8)


def file_of(image: np.ndarray, kind: str) -> bytes:
    """An image as the contents of a file, one of `KINDS`."""
    file = io.BytesIO()
    name, options = KINDS[kind]
    Image.fromarray(image).save(file, name, **options)
    return file.getvalue()
