"""Checkpoints: everything that training goes on from, in one file that is whole or absent.

A checkpoint is an uncompressed .npz: every variable of the learner (weights, BatchNorm statistics, dropout seeds,
metrics) and of the optimizer, in order, with the step and other small facts as JSON. Its last bytes, the comment of
the zip, are the SHA-256 of all before them. It is written under a temporary name, flushed and renamed; a file with any
byte changed or missing is noticed when it is read, and the one before is used.

Under an optimizer with `use_ema` the learner's weights in the file are the moving averages, as `fit` leaves them, so
that whoever reads the file gets those; the weights that training goes on from follow the optimizer's variables.

(The zip's own CRCs would not do: the headers lie outside of them, and NumPy does not read an array to its end, where
the CRC is compared, if a changed header makes it shorter. Checkpoints from before the checksum have nothing else.)
"""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import re
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import keras
import numpy as np

from tf_unravel.files import write_atomically

_log = logging.getLogger(__name__)
_NAME = re.compile(r"step-(\d+)\.npz")
_FACTS = "facts"
_AVERAGED = "averaged"
_SEAL = b"sha256 "  # and 64 hexadecimal digits
_SEAL_BYTES = len(_SEAL) + 64
_UNSEALED = re.compile(rb"PK\x05\x06.{16}\0\0", re.DOTALL)  # how a zip without a comment ends
_BLOCK = 1 << 20
_LOOKS = 10


def _variables(learner: keras.Model) -> list[keras.Variable]:
    optimizer = getattr(learner, "optimizer", None)
    return [*learner.variables, *(optimizer.variables if optimizer else [])]


@contextlib.contextmanager
def averaged(learner: keras.Model) -> Iterator[list[np.ndarray]]:
    """Inside, the weights are their moving averages, where the optimizer keeps some and has taken a step.

    Args:
        learner: compiled or not; without `use_ema` nothing changes.

    Yields:
        The trainable weights that were put aside, and are put back afterwards; none where nothing was.
    """
    optimizer: Any = getattr(learner, "optimizer", None)
    inner = getattr(optimizer, "inner_optimizer", optimizer)  # of one that scales the loss
    if optimizer is None or inner is None or not getattr(inner, "use_ema", False) or not int(inner.iterations):
        yield []
        return
    weights = learner.trainable_variables
    own = [np.array(keras.ops.convert_to_numpy(weight)) for weight in weights]
    try:
        optimizer.finalize_variable_values(weights)
        yield own
    finally:
        for weight, value in zip(weights, own, strict=True):
            weight.assign(value)


def _digest(file: BinaryIO, length: int) -> bytes:
    """SHA-256 of the first `length` bytes, as hexadecimal digits."""
    digest = hashlib.sha256()
    file.seek(0)
    while length and (block := file.read(min(length, _BLOCK))):
        digest.update(block)
        length -= len(block)
    return digest.hexdigest().encode("ascii")


def _write_sealed(file: BinaryIO, arrays: dict[str, np.ndarray]) -> None:
    """Writes an .npz whose comment is the checksum of what stands before it.

    np.savez would leave its archive open where the disk is full, and that complains when it is collected.
    """
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    file.seek(-2, os.SEEK_END)  # the comment's length, 0 so far
    file.write(_SEAL_BYTES.to_bytes(2, "little") + _SEAL)
    digits = _digest(file, file.tell())
    file.seek(0, os.SEEK_END)
    file.write(digits)


def _read_sealed(file: BinaryIO) -> dict[str, np.ndarray]:
    """The arrays of such an .npz.

    Raises:
        ValueError: the checksum is another one, or is missing; other exceptions where an .npz without one is damaged.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _SEAL_BYTES))
    end = file.read()
    sealed = end.startswith(_SEAL)
    if sealed and _digest(file, size - 64) != end[len(_SEAL) :]:
        raise ValueError("its checksum is another one")
    if not sealed and not _UNSEALED.fullmatch(end[-22:]):
        raise ValueError("its end is missing")
    file.seek(0)
    with np.load(file, allow_pickle=False) as archive:
        if not sealed and (bad := archive.zip.testzip()):
            raise ValueError(f"the checksum of {bad} is another one")
        return {name: archive[name] for name in archive.files}


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
        with averaged(learner) as own:
            values = [*(keras.ops.convert_to_numpy(variable) for variable in _variables(learner)), *own]
            arrays = {f"{i:04d}": value for i, value in enumerate(values)}
            arrays[_FACTS] = np.array(json.dumps({**facts, _AVERAGED: True} if own else facts))
            write_atomically(path, lambda file: _write_sealed(file, arrays))

    def restore_latest(self, learner: keras.Model) -> dict[str, Any] | None:
        """Restores the newest whole checkpoint and returns its facts; None where there is none.

        A damaged one is passed over with a warning.

        Raises:
            ValueError: checkpoints exist and none can be read.
        """
        for _ in range(_LOOKS):
            paths, dropped = self.newest_first(), False
            for path in paths:
                try:
                    return self.restore(path, learner)
                except FileNotFoundError:  # by the process that trains, which has newer ones since
                    dropped = True
                except (OSError, ValueError) as error:
                    _log.warning("%s; trying the checkpoint before it.", error)
            if not dropped:
                break
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
            ValueError: the file is damaged, or does not fit the learner, which is left as it was.
            OSError: the file cannot be read.
        """
        arrays, facts = self._read(path)
        variables = _variables(learner)
        if len(arrays) < len(variables):
            raise ValueError(f"{path} holds {len(arrays)} variables, the model has {len(variables)}")
        values = arrays[: len(variables)]
        for variable, value in zip(variables, values, strict=True):
            if tuple(variable.shape) != value.shape:
                raise ValueError(f"{path}: {variable.path} has shape {value.shape}, the model {tuple(variable.shape)}")
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        if facts.pop(_AVERAGED, False) and getattr(learner, "optimizer", None):  # training goes on from others
            weights = learner.trainable_variables
            for variable, value in zip(weights, arrays[len(arrays) - len(weights) :], strict=True):
                variable.assign(value)
        return facts

    @staticmethod
    def _read(path: pathlib.Path) -> tuple[list[np.ndarray], dict[str, Any]]:
        """(the variables, the facts) of a checkpoint."""
        try:
            with open(path, "rb") as file:
                arrays = _read_sealed(file)
            facts = json.loads(str(arrays.pop(_FACTS)))
            return [arrays[f"{i:04d}"] for i in range(len(arrays))], facts
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as error:  # an old, damaged one makes zipfile, tokenize and NumPy fail in many ways
            what = str(error).partition("\n")[0] or type(error).__name__
            raise ValueError(f"{path} cannot be used: it is damaged ({what})") from error
