"""Which classes are taken for which: images in folders named after classes against what they were answered.

    counts[i, j] = images in folders of class i that were answered j;   a row's shares are of its images

With many classes only those with the most errors are shown, as folder and as answer together; a column stands for the
answers of all others, so that a row still holds all of its images.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tf_unravel.analysis.plot_style import names_shown, new_figure, plain

OTHERS = "(others)"
_MOST, _KEPT = 30, 20  # classes that are all shown; of more, how many
_CELL = 0.44  # inches
_SMALL = 8  # points


class Confusion(NamedTuple):
    """A matrix of counts.

    Attributes:
        counts: int [R, C].
        rows: folders' classes, [R].
        columns: answers, [C].
        classes: how many there are, shown or not.
    """

    counts: np.ndarray
    rows: list[str]
    columns: list[str]
    classes: int


def confusion(folders: Sequence[str], answers: Sequence[str], class_names: Sequence[str]) -> Confusion:
    """Counts the answers to the images of each class's folder.

    Args:
        folders: the class that each image's folder is named after.
        answers: what was answered, a class or another word, such as "unknown", which comes last.
        class_names: all classes, in their order.

    Returns:
        Confusion, with a row for each class that has images and is shown.

    Example:
        >>> confusion(["cat", "cat"], ["dog", "cat"], ["cat", "dog"]).counts
        array([[1, 1]])
    """
    columns = [*class_names, *dict.fromkeys(answer for answer in answers if answer not in class_names)]
    place = {name: number for number, name in enumerate(columns)}
    counts = np.zeros((len(class_names), len(columns)), np.int64)
    np.add.at(counts, ([place[name] for name in folders], [place[name] for name in answers]), 1)
    if len(class_names) > _MOST:
        wrong = counts * ~np.eye(*counts.shape, dtype=bool)
        errors = wrong.sum(axis=1) + wrong.sum(axis=0)[: len(class_names)]
        kept = np.sort(np.argsort(-errors, kind="stable")[:_KEPT])
        others = np.setdiff1d(np.arange(len(class_names)), kept)
        more = np.arange(len(class_names), len(columns))
        counts = np.column_stack([counts[:, kept], counts[:, others].sum(axis=1), counts[:, more]])[kept]
        columns = [*(columns[i] for i in kept), OTHERS, *columns[len(class_names) :]]
    rows = [name for name in columns if name in place and place[name] < len(class_names)]
    filled = counts.sum(axis=1) > 0
    return Confusion(counts[filled], [row for row, has in zip(rows, filled, strict=True) if has], columns,
                     len(class_names))


def confusion_figure(found: Confusion, title: str) -> Figure:
    """Draws counts and shares of rows, darker for larger shares; a frame marks the right answers.

    Args:
        found: the counts.
        title: a line above; how many classes are left out is said below it.
    """
    rows, columns = found.counts.shape
    if found.classes > _MOST:
        title += f"\nThe {_KEPT} of {found.classes} classes with the most errors"
    figure = new_figure(max(4.0, _CELL * columns + 2.2), _CELL * rows + 2.6)
    panel = figure.subplots()
    shares = found.counts / found.counts.sum(axis=1, keepdims=True)
    panel.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    shown = names_shown(dict.fromkeys([*found.rows, *found.columns]), 22)
    images = found.counts.sum(axis=1)
    panel.set_xticks(range(columns), [shown[name] for name in found.columns], rotation=90, fontsize=_SMALL)
    panel.set_yticks(range(rows), [f"{shown[name]} ({count})" for name, count in zip(found.rows, images, strict=True)],
                     fontsize=_SMALL)
    panel.set_xticks(np.arange(columns - 1) + 0.5, minor=True)
    panel.set_yticks(np.arange(rows - 1) + 0.5, minor=True)
    panel.grid(which="minor", color="0.85", linewidth=0.5)
    panel.tick_params(which="both", length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    panel.set_ylabel("folder (images)", fontsize=_SMALL)
    panel.set_xlabel("answer: images, and % of the folder's", fontsize=_SMALL)
    figure.suptitle(plain(title), fontsize=9)
    _cells(panel, found, shares)
    return figure


def _cells(panel: Axes, found: Confusion, shares: np.ndarray) -> None:
    for row, column in np.argwhere(found.counts):
        share = shares[row, column]
        panel.text(column, row, f"{found.counts[row, column]}\n{100 * share:.0f} %", ha="center", va="center",
                   fontsize=_SMALL, color="white" if share > 0.55 else "black", linespacing=1.05)
    for row, name in enumerate(found.rows):
        left = found.columns.index(name) - 0.5
        panel.plot([left, left + 1, left + 1, left, left], row + np.array([-0.5, -0.5, 0.5, 0.5, -0.5]), color="black",
                   linewidth=1.3, clip_on=False)
