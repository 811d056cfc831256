"""Trained extractors that come with the package, by name.

Each is a run folder in miniature, `tf_unravel/trained/<name>/`: config.gin, environment.json and results.json without
the paths of the machine that trained it, `checkpoints/best.npz` with the learner's variables (weights, BatchNorm
statistics; no state of an optimizer), and `card.json`, which says what it is, how it was trained and what was measured.
The folders are only read: a command that writes results works on a copy.
"""

import functools
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras

import tf_unravel
from tf_unravel.files import write_folder, write_json
from tf_unravel.runs.checkpoints import Checkpoints
from tf_unravel.runs.config import ConfigError
from tf_unravel.runs.finished_run import FinishedRun
from tf_unravel.runs.folder import RunFolder
from tf_unravel.runs.portable import portable

FOLDER = pathlib.Path(tf_unravel.__file__).parent / "trained"
CARD = "card.json"


def trained_names() -> list[str]:
    """The extractors that come with the package, in alphabetical order."""
    return sorted(path.parent.name for path in FOLDER.glob(f"*/{CARD}"))


def trained(name: str) -> keras.Model:
    """A trained extractor.

    As for any run that is read, Keras's random seed is set (`keras.utils.set_random_seed`).

    Args:
        name: of `trained_names()`.

    Returns:
        The backbone with its weights: uint8 or float images 0-255 [B, H, W, C] -> features [B, D]. A new one at each
        call.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> backbone = trained("cifar_fs_r2d2")
        >>> backbone(images).shape
        TensorShape([5, 1600])
    """
    return FinishedRun(_folder_of(name)).backbone


def copies(names: Sequence[str], out: pathlib.Path) -> list[str]:
    """Run folders `<out>/<name>` of extractors, to evaluate, measure or export; a copy that is there is used again.

    Args:
        names: of `trained_names()`.
        out: a folder.

    Returns:
        The run folders.

    Raises:
        ConfigError: an unknown name; another run at one of these places.
        NotWritten: the folder cannot be written.
    """
    sources = [_folder_of(name) for name in names]
    for source in sources:
        copy = out / source.name
        if not copy.exists():
            write_folder(copy, functools.partial(_copy, source))
        elif not _is_copy(copy, source):
            raise ConfigError(f"{copy} is not the trained extractor {source.name}, or its files were changed; give "
                              "another --out, or move it away")
    return [str(out / source.name) for source in sources]


def ship(run: FinishedRun, out: pathlib.Path, card: Mapping[str, Any]) -> None:
    """Writes a trained run as such a folder.

    Args:
        run: with the checkpoint that is read.
        out: the folder; one that is there is replaced.
        card: JSON values.

    Raises:
        NotWritten: the disk is full, or the place cannot be written.
    """

    def fill(folder: pathlib.Path) -> None:
        for name, content in portable(run.folder.path).items():
            (folder / name).write_bytes(content)
        Checkpoints(folder / "checkpoints").save_best(run.learner, {"step": run.step})
        write_json(folder / CARD, card)

    write_folder(out, fill)


def _folder_of(name: str) -> pathlib.Path:
    if name not in trained_names():
        known = ", ".join(trained_names()) or "none in this installation"
        raise ConfigError(f"the trained extractors are {known}. Received: {name!r}")
    return FOLDER / name


def _files_in(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Its files, relative to it."""
    return (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def _copy(source: pathlib.Path, folder: pathlib.Path) -> None:
    """Copies the files without their permissions: the package may be installed read-only."""
    for name in _files_in(source):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, folder / name)


def _is_copy(copy: pathlib.Path, source: pathlib.Path) -> bool:
    """Whether a folder is the copy, to which results may have been added."""
    ours, theirs = RunFolder(copy), RunFolder(source)
    others = [name for name in _files_in(source) if name.name != theirs.results.name]
    same = [(copy / name).is_file() and (copy / name).read_bytes() == (source / name).read_bytes() for name in others]
    return all(same) and ours.training_results() == theirs.training_results()
