"""A contact sheet: pictures that were classified, each with the labelled pictures nearest to it in feature space.

Nearest by the Euclidean distance of the features, before any head or fine-tuning looks at them: what the extractor
holds to be alike. A frame's colour is that of a class, and its name stands below.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tf_unravel.analysis.palette import COLOURS

_GAP, _TEXT = 0.12, 0.34  # between pictures and below them, in widths of a picture
_INCHES = 1.15  # of a picture
_ROWS = 16  # before another block begins beside the first


class Neighbour(NamedTuple):
    """A labelled picture near another one.

    Attributes:
        image: uint8 [H, W, C].
        class_name: its class.
        distance: in feature space.
    """

    image: np.ndarray
    class_name: str
    distance: float


class Query(NamedTuple):
    """A picture that was classified.

    Attributes:
        image: uint8 [H, W, C].
        file: its name.
        class_name: the class it was given.
        probability: of that class.
        neighbours: nearest first.
    """

    image: np.ndarray
    file: str
    class_name: str
    probability: float
    neighbours: Sequence[Neighbour]


def contact_sheet(queries: Sequence[Query], class_names: Sequence[str], title: str = "") -> Figure:
    """Draws pictures, a row each, with their nearest labelled pictures.

    Args:
        queries: from top to bottom, then in another block beside it.
        class_names: all classes; a class's place decides its colour.
        title: what the sheet shows.

    Returns:
        matplotlib Figure, bound to no window: save it with `figure.savefig(...)`.

    Raises:
        ValueError: nothing to draw.

    Example:
        >>> image = np.zeros((8, 8, 3), np.uint8)
        >>> sheet = contact_sheet([Query(image, "a.png", "cat", 0.9, [Neighbour(image, "cat", 0.1)])], ["cat", "dog"])
    """
    if not queries:
        raise ValueError("There is nothing to draw. Received: no queries.")
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(class_names)}
    height = queries[0].image.shape[0] / queries[0].image.shape[1]  # of a picture, in its widths
    block = (1 + max(len(query.neighbours) for query in queries)) * (1 + _GAP) + 3 * _GAP  # width of one
    across, down = -(-len(queries) // _ROWS) * block, min(len(queries), _ROWS) * (height + _TEXT) + _TEXT
    figure = Figure(figsize=(across * _INCHES, down * _INCHES))
    FigureCanvasAgg(figure)
    panel = figure.add_axes((0, 0, 1, 1))
    panel.set(xlim=(0, across), ylim=(down, 0))
    panel.set_axis_off()
    panel.text(_GAP, 0.7 * _TEXT, title, fontsize=8, va="bottom", parse_math=False)
    for number, query in enumerate(queries):
        left, top = _GAP + number // _ROWS * block, _TEXT + number % _ROWS * (height + _TEXT)
        answer = f"{query.class_name} {query.probability:.2f}"
        _picture(panel, query.image, (left, top), height, colours[query.class_name], (query.file, answer))
        for near in query.neighbours:
            left += 1 + (2 if near is query.neighbours[0] else 1) * _GAP
            below = (near.class_name, f"{near.distance:.2f}")
            _picture(panel, near.image, (left, top), height, colours[near.class_name], below)
    return figure


def _picture(
    panel: Axes, image: np.ndarray, corner: tuple[float, float], height: float, colour: str, below: Sequence[str]
) -> None:
    left, top = corner
    pixels = image if image.shape[-1] == 3 else image[..., 0]
    extent = (left, left + 1, top + height, top)
    panel.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=extent, aspect="auto", interpolation="nearest")
    panel.add_patch(Rectangle(corner, 1, height, fill=False, edgecolor=colour, linewidth=2))
    for line, text in enumerate(below):
        panel.text(left, top + height + 0.12 + 0.11 * line, _short(text), fontsize=6, va="baseline", parse_math=False)


def _short(text: str, longest: int = 20) -> str:
    """The end of a long name tells more than its beginning."""
    return text if len(text) <= longest else "…" + text[1 - longest :]
