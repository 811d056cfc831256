"""What a run says while it goes: TensorBoard, metrics.jsonl, and a progress bar."""

import contextlib
import json
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
import tqdm
from matplotlib.figure import Figure

from tf_unravel.analysis.plot_style import figure_png
from tf_unravel.files import NotWritten, write_text
from tf_unravel.runs.folder import RunFolder


@contextlib.contextmanager
def _events() -> Iterator[None]:
    """Whatever keeps TensorFlow from writing its events, as NotWritten."""
    try:
        yield
    except tf.errors.OpError as error:
        line = re.sub(r"^\{\{.*?\}\} ", "", error.message.splitlines()[0])  # "<file>; <reason>"
        path, _, reason = line.partition("; ")
        raise NotWritten(pathlib.Path(path), OSError(0, reason or line)) from error


def event_writer(folder: pathlib.Path) -> tf.summary.SummaryWriter:
    """A writer of TensorBoard's events.

    Raises:
        NotWritten: the disk is full, or the folder cannot be written.
    """
    with _events():
        return tf.summary.create_file_writer(str(folder))


def log_figure(writer: tf.summary.SummaryWriter, name: str, figure: Figure, step: int) -> bytes:
    """Writes a figure to TensorBoard and returns it as PNG.

    Raises:
        NotWritten: the disk is full.
    """
    png = figure_png(figure)
    with _events(), writer.as_default(step=step):
        tf.summary.image(name, tf.image.decode_png(png, channels=4)[None])
        writer.flush()
    return png


class Logs(contextlib.AbstractContextManager["Logs"]):
    """Scalars, figures and text of a run in training, to TensorBoard and metrics.jsonl at once.

    Args:
        folder: the run's folder.
        first_step: the step that this start goes on from; lines of metrics.jsonl beyond it belong to steps that
            were lost with a killed process, and are dropped.
        validated: whether the validation of that step was saved; otherwise it is made, and logged, again.

    Raises:
        NotWritten: here and in every method: the disk is full, or the folder cannot be written.
    """

    def __init__(self, folder: RunFolder, first_step: int, validated: bool = True):
        self._keep_lines(folder, first_step, validated)
        self._path = folder.metrics
        self._lines = open(self._path, "a", encoding="utf-8")
        self._writer = event_writer(folder.tensorboard)

    @staticmethod
    def _keep_lines(folder: RunFolder, first_step: int, validated: bool) -> None:
        if not folder.metrics.exists():
            return
        kept = []
        for line in folder.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, LookupError, TypeError):  # what a killed process, or a disk, damaged
                values = json.loads(line)
                again = not validated and any(name.startswith("val/") for name in values)
                if values["step"] < first_step + (not again):
                    kept.append(line + "\n")
        write_text(folder.metrics, "".join(kept))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes named values of one step, names such as "train/loss"."""
        try:
            self._lines.write(json.dumps({"step": step, **values}) + "\n")
            self._lines.flush()
        except OSError as error:
            raise NotWritten(self._path, error) from error
        with _events(), self._writer.as_default(step=step):
            for name, value in values.items():
                tf.summary.scalar(name, value)

    def text(self, name: str, body: str) -> None:
        """Writes a text, shown as code."""
        with _events(), self._writer.as_default(step=0):
            tf.summary.text(name, "\n".join("    " + line for line in body.splitlines()))

    def figure(self, name: str, figure: Figure, step: int) -> None:
        """Writes a figure."""
        log_figure(self._writer, name, figure, step)

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        with contextlib.suppress(OSError):  # every line was flushed, or its failure raised
            self._lines.close()
        try:
            with _events():
                self._writer.close()
        except NotWritten:
            if kind is None:
                raise


def progress_bar(first: int, total: int, unit: str = "step", delay: float = 0.0) -> tqdm.tqdm:
    """A bar on standard error, from `delay` seconds on; a line every 30 s where that is not a terminal."""
    interval = 0.5 if sys.stderr.isatty() else 30.0
    return tqdm.tqdm(initial=first, total=total, unit=unit, mininterval=interval, dynamic_ncols=True, delay=delay)
