"""The pictures that `classify` draws into its folder; a mark inside tells them from somebody else's of that name."""

import pathlib

from matplotlib.figure import Figure

from tf_unravel.analysis.plot_style import figure_png
from tf_unravel.files import write_bytes

_MARK = "tf_unravel"


def is_picture(path: pathlib.Path) -> bool:
    """Whether a file is one that `write_picture` wrote, or the contact sheet of an earlier version."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return f"Software\0{_MARK}".encode() in file.read(512)  # its first text, before the pixels


def write_picture(figure: Figure, path: pathlib.Path) -> None:
    """Writes a figure as PNG, whole or not at all."""
    write_bytes(path, figure_png(figure, _MARK))
