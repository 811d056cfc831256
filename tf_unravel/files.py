"""Files and folders that are whole or absent, whatever interrupts the process that writes them.

Both are written under a temporary name beside the wanted one, flushed to the disk and renamed. Where a folder replaces
another, the old one stays whole until the new one is; between the two renames neither has the name, and a process
that is killed just there leaves the old one beside it, to be put back by the next that writes.
"""

import contextlib
import glob
import os
import pathlib
import shutil
import uuid
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import BinaryIO

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows: leftovers of killed processes stay, as nothing tells them from those of living ones
    fcntl = None


class NotWritten(OSError):
    """A file or folder could not be written; the message is one line that names it and the reason."""

    def __init__(self, path: os.PathLike[str], error: OSError) -> None:
        advice = "make room or give write access there; the same command then goes on"
        self.reason: str = error.reason if isinstance(error, NotWritten) else error.strerror or str(error)
        super().__init__(f"{path} cannot be written ({self.reason}): {advice}")


def write_atomically(path: pathlib.Path, write: Callable[[BinaryIO], object]) -> None:
    """Calls write(binary file, which it may also read) on a temporary file, flushes it to the disk and renames it.

    Raises:
        NotWritten: the disk is full, or the folder cannot be written; what was at `path` before is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except OSError as error:
        raise NotWritten(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_folder(path: pathlib.Path, fill: Callable[[pathlib.Path], None]) -> None:
    """Calls fill(temporary folder), flushes what it wrote to the disk and renames the folder to `path`.

    Args:
        path: the folder; one that is there is replaced.
        fill: writes into the folder it is given.

    Raises:
        NotWritten: the disk is full, or the place cannot be written; a folder that was at `path` before is still there.

    Example:
        >>> write_folder(pathlib.Path("model"), lambda folder: (folder / "a.txt").write_text("whole"))
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_beside(path, fill)
    except OSError as error:  # of a file inside, it names that by the temporary folder
        raise NotWritten(path, error) from error


def _write_beside(path: pathlib.Path, fill: Callable[[pathlib.Path], None]) -> None:
    token = uuid.uuid4().hex
    temporary, before = (path.with_name(f".{path.name}.{token}.{end}") for end in ("tmp", "old"))
    temporary.mkdir()
    with _held(temporary):
        try:
            _remove_leftovers(path)
            fill(temporary)
            _flush_tree(temporary)
            with contextlib.suppress(FileNotFoundError):
                os.rename(path, before)
            os.rename(temporary, path)
            _flush_folder(path.parent)
        except BaseException:
            if before.exists() and not path.exists():
                os.rename(before, path)
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(before, ignore_errors=True)


@contextlib.contextmanager
def _held(folder: pathlib.Path) -> Iterator[None]:
    """Locks a folder while this process lives: the system lets go of it however the process ends."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _remove_leftovers(path: pathlib.Path) -> None:
    """Puts back, or removes, what processes that were killed while they wrote `path` left beside it."""
    if fcntl is None:
        return
    for end in ("old", "tmp"):
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 32}.{end}"):
            with contextlib.suppress(OSError):  # somebody else removed it, or holds it
                handle = os.open(leftover, os.O_RDONLY)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if end == "old" and not path.exists():
                        os.rename(leftover, path)
                    else:
                        shutil.rmtree(leftover)
                finally:
                    os.close(handle)


def _flush_tree(folder: pathlib.Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(parent, name), "rb") as file:
                os.fsync(file.fileno())
        _flush_folder(pathlib.Path(parent))


def _flush_folder(folder: pathlib.Path) -> None:
    with contextlib.suppress(OSError):  # folders cannot be opened on Windows
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
