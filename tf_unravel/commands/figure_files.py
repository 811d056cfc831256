"""Where the figures of `evaluate` and `measure` go: beside the tables, and into every run and its TensorBoard."""

import pathlib
from collections.abc import Mapping

from matplotlib.figure import Figure

from tf_unravel.analysis.plot_style import figure_png
from tf_unravel.files import write_bytes
from tf_unravel.runs.finished_run import FinishedRun
from tf_unravel.runs.logs import event_writer, log_figure


def write_figures(folder: pathlib.Path, split: str, figures: Mapping[str, Figure | None]) -> str:
    """Writes <name>_<split>.png for each figure that there is, and returns the lines that say so.

    Args:
        folder: where the table goes.
        split: "train", "val" or "test".
        figures: by name.
    """
    said = ""
    for name, figure in figures.items():
        if figure is not None:
            path = folder / f"{name}_{split}.png"
            write_bytes(path, figure_png(figure))
            said += f"\nFigure: {path}"
    return said


def add_to_run(run: FinishedRun, split: str, figures: Mapping[str, Figure | None], ending: str = "") -> None:
    """Writes figures/<name><ending>_<split>.png into a run's folder, and <split>/<name> into its TensorBoard.

    Args:
        run: the run.
        split: "train", "val" or "test".
        figures: by name; None is left out.
        ending: keeps figures of untrained weights apart; TensorBoard has them at step 0.
    """
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    if not drawn:
        return
    writer = event_writer(run.folder.tensorboard)
    for name, figure in drawn.items():
        png = log_figure(writer, f"{split}/{name}", figure, run.step)
        write_bytes(run.folder.figures / f"{name}{ending}_{split}.png", png)
