"""Checkpoints: everything that training goes on from, in one file that is whole or absent.

A checkpoint is an uncompressed .npz: every variable of the learner (weights, BatchNorm statistics, dropout seeds,
metrics) and of the optimizer, in order, with the step and other small facts as JSON. It is written under a temporary
name, flushed and renamed; reading checks the zip's CRC of every array, so a damaged file is noticed and the one
before is used.
"""

import json
import logging
import pathlib
import re
import zipfile
from typing import Any

import keras
import numpy as np

from tf_unravel.files import write_atomically

_log = logging.getLogger(__name__)
_NAME = re.compile(r"step-(\d+)\.npz")
_FACTS = "facts"


def _variables(learner: keras.Model) -> list[keras.Variable]:
    optimizer = getattr(learner, "optimizer", None)
    return [*learner.variables, *(optimizer.variables if optimizer else [])]


class Checkpoints:
    """The checkpoints of one run: the newest few, and the best by validation.

    Args:
        folder: where they are; it is made on the first save.
        keep: how many of the newest to keep.
        writes: False for a process that only reads what another one saves; its saves do nothing.
    """

    def __init__(self, folder: pathlib.Path, keep: int = 2, writes: bool = True):
        self.folder, self.keep, self.writes = folder, keep, writes
        self.best = folder / "best.npz"

    def newest_first(self) -> list[pathlib.Path]:
        """The numbered checkpoints, newest first."""
        named = ((_NAME.fullmatch(path.name), path) for path in self.folder.glob("step-*.npz"))
        numbered = [(int(name[1]), path) for name, path in named if name]
        return [path for _, path in sorted(numbered, reverse=True)]

    def save(self, learner: keras.Model, facts: dict[str, Any]) -> pathlib.Path:
        """Writes step-<facts["step"]>.npz and drops the oldest beyond `keep`.

        Args:
            learner: built, with its optimizer built.
            facts: JSON values to restore with it; "step" is how many steps were taken.

        Returns:
            The file.
        """
        path = self.folder / f"step-{facts['step']:08d}.npz"
        self._write(path, learner, facts)
        for old in self.newest_first()[self.keep :] if self.writes else ():
            old.unlink(missing_ok=True)
        return path

    def save_best(self, learner: keras.Model, facts: dict[str, Any]) -> None:
        """Writes best.npz in place of the one before."""
        self._write(self.best, learner, facts)

    def _write(self, path: pathlib.Path, learner: keras.Model, facts: dict[str, Any]) -> None:
        if not self.writes:
            return
        arrays = {f"{i:04d}": keras.ops.convert_to_numpy(v) for i, v in enumerate(_variables(learner))}
        arrays[_FACTS] = np.array(json.dumps(facts))
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: np.savez(file, **arrays))

    def restore_latest(self, learner: keras.Model) -> dict[str, Any] | None:
        """Restores the newest whole checkpoint and returns its facts; None where there is none.

        A damaged one is passed over with a warning.

        Raises:
            ValueError: checkpoints exist and none can be read.
        """
        paths = self.newest_first()
        for path in paths:
            try:
                return self.restore(path, learner)
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                _log.warning("checkpoint %s cannot be used (%s); trying the one before it.", path, error)
        if paths:
            raise ValueError(f"none of the {len(paths)} checkpoints in {self.folder} can be read; start a new folder")
        return None

    def restore(self, path: pathlib.Path, learner: keras.Model) -> dict[str, Any]:
        """Restores one file into a learner built the same way.

        Args:
            path: the file.
            learner: built; with or without its optimizer (then the optimizer's part is left unread).

        Returns:
            The facts saved with it.

        Raises:
            ValueError: the file does not fit the learner.
            OSError, zipfile.BadZipFile: the file cannot be read whole.
        """
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        variables = _variables(learner)
        if len(arrays) - 1 < len(variables):
            raise ValueError(f"{path} holds {len(arrays) - 1} variables, the model has {len(variables)}")
        values = [arrays[f"{i:04d}"] for i in range(len(variables))]
        for variable, value in zip(variables, values, strict=True):
            if tuple(variable.shape) != value.shape:
                raise ValueError(f"{path}: {variable.path} has shape {value.shape}, the model {tuple(variable.shape)}")
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        return json.loads(str(arrays[_FACTS]))
