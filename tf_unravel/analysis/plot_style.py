"""What all figures are drawn with: Okabe and Ito's colours, told apart by the colour-blind; the rest tells in grey."""

import io
import warnings
from collections import Counter
from collections.abc import Iterable

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C")
MARKERS = ("o", "^", "s", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
HATCHES = ("////", "\\\\\\\\", "....", "xxxx", "++++", "----", "oooo")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, bound to no window and to no pyplot state."""
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08))  # inches
    FigureCanvasAgg(figure)
    return figure


def figure_png(figure: Figure, software: str | None = None) -> bytes:
    """A figure as the bytes of a PNG file, `software` in its metadata; None for matplotlib's own mark."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box is drawn for it
        figure.savefig(buffer, format="png", dpi=120, metadata={"Software": software} if software else None)
    return buffer.getvalue()


def short(text: str, longest: int = 20) -> str:
    """The end of a long name tells more than its beginning; on one line."""
    text = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    return text if len(text) <= longest else "…" + text[1 - longest :]


def plain(text: str) -> str:
    """A text that matplotlib draws as it is: two dollar signs begin no mathematics."""
    return text.replace("$", r"\$")


def names_shown(names: Iterable[str], longest: int = 28) -> dict[str, str]:
    """Names -> what a figure calls them: short, plain, and numbered where that makes two alike."""
    shown = {name: short(name, longest) for name in names}
    alike, number = Counter(shown.values()), Counter[str]()
    for name, text in shown.items():
        if alike[text] > 1:
            number[text] += 1
            shown[name] = f"{text} ({number[text]})"
    return {name: plain(text) for name, text in shown.items()}
