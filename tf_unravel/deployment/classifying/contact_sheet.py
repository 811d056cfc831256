"""A contact sheet: images that were classified, each with the labelled images nearest to it in feature space.

Nearest by the Euclidean distance of the features, before any head or fine-tuning looks at them: what the extractor
holds to be alike. A frame's colour is that of a class, and its name stands below; where an image's folder is named
after another class than the one it was given, that is said below it too.
"""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tf_unravel.analysis.plot_style import COLOURS, short

_GAP, _TEXT, _LINE = 0.12, 0.48, 0.11  # between images, below them, and of it a line, in widths of an image
_INCHES = 1.15  # of an image
_ROWS = 16  # before another block begins beside the first
_LEGEND = (
    "In front, the class that an image was given, and its probability. Behind it the labelled images, their classes "
    "and distances. The colour of a frame is a class; 'folder' stands where an image's folder is named after another."
)


class Neighbour(NamedTuple):
    """A labelled image near another one.

    Attributes:
        image: uint8 [H, W, C].
        class_name: its class.
        distance: in feature space.
    """

    image: np.ndarray
    class_name: str
    distance: float


class Query(NamedTuple):
    """An image that was classified.

    Attributes:
        image: uint8 [H, W, C].
        file: its name.
        class_name: the class it was given, or another word for none.
        probability: of that class.
        neighbours: nearest first.
        folder_class: the class that its folder is named after, if any.
    """

    image: np.ndarray
    file: str
    class_name: str
    probability: float
    neighbours: Sequence[Neighbour]
    folder_class: str | None = None


def contact_sheet(queries: Sequence[Query], class_names: Sequence[str], title: str = "") -> Figure:
    """Draws images, a row each, with their nearest labelled images.

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
    height = queries[0].image.shape[0] / queries[0].image.shape[1]  # of an image, in its widths
    block = (1 + max(len(query.neighbours) for query in queries)) * (1 + _GAP) + 3 * _GAP  # width of one
    across = -(-len(queries) // _ROWS) * block
    letters = int(20 * across)  # of a line at the top
    again = f" Colours come again after {len(COLOURS)} classes." if len(class_names) > len(COLOURS) else ""
    lines = [*textwrap.wrap(title, letters), *textwrap.wrap(_LEGEND + again, letters)]
    head = _LINE * (len(lines) + 2)
    down = head + min(len(queries), _ROWS) * (height + _TEXT)
    figure = Figure(figsize=(across * _INCHES, down * _INCHES))
    FigureCanvasAgg(figure)
    panel = figure.add_axes((0, 0, 1, 1))
    panel.set(xlim=(0, across), ylim=(down, 0))
    panel.set_axis_off()
    _lines(panel, (_GAP, _LINE), lines)
    for number, query in enumerate(queries):
        left, top = _GAP + number // _ROWS * block, head + number % _ROWS * (height + _TEXT)
        said = [query.file, f"{query.class_name} {query.probability:.2f}"]
        if query.folder_class not in (None, query.class_name):
            said.append(f"folder: {query.folder_class}")
        _image(panel, query.image, (left, top), height, colours.get(query.class_name, "grey"), said)
        for near in query.neighbours:
            left += 1 + (2 if near is query.neighbours[0] else 1) * _GAP
            below = (near.class_name, f"{near.distance:.2f}")
            _image(panel, near.image, (left, top), height, colours[near.class_name], below)
    return figure


def _image(
    panel: Axes, image: np.ndarray, corner: tuple[float, float], height: float, colour: str, below: Sequence[str]
) -> None:
    left, top = corner
    pixels = image if image.shape[-1] == 3 else image[..., 0]
    extent = (left, left + 1, top + height, top)
    panel.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=extent, aspect="auto", interpolation="nearest")
    panel.add_patch(Rectangle(corner, 1, height, fill=False, edgecolor=colour, linewidth=2))
    _lines(panel, (left, top + height), [short(text) for text in below])


def _lines(panel: Axes, corner: tuple[float, float], lines: Sequence[str]) -> None:
    left, top = corner
    for number, line in enumerate(lines, start=1):
        panel.text(left, top + 0.01 + _LINE * number, line, fontsize=6, va="baseline", parse_math=False)
