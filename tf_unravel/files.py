"""Files and folders that are whole or absent, whatever interrupts the process that writes them, and locks.

Both are written under a temporary name beside the wanted one, flushed to the disk and renamed. Where a folder replaces
another, the old one stays whole until the new one is; between the two renames neither has the name, and a process
that is killed just there leaves the old one beside it, to be put back by the next that writes.

Locks are the system's own (flock), because it drops them however their holder ends, and they also lock folders.
"""

import contextlib
import glob
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, BinaryIO

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows: no locks, so that leftovers of killed processes stay
    fcntl = None


class NotWritten(OSError):
    """A file or folder could not be written; the message is one line that names it and the reason."""

    def __init__(self, path: os.PathLike[str], error: OSError) -> None:
        advice = "make room or give write access there; the same command then goes on"
        self.error = error
        self.reason: str = error.reason if isinstance(error, NotWritten) else error.strerror or str(error)
        super().__init__(f"{path} cannot be written ({self.reason}): {advice}")


@contextlib.contextmanager
def locked(path: pathlib.Path, wait: bool = True, folder: bool = False) -> Iterator[bool]:
    """Holds a lock until the block or this process ends.

    Args:
        path: the file to lock, made if need be.
        wait: until another holder lets go.
        folder: `path` is a folder, which must be there.

    Yields:
        Whether it is locked; False where the platform or the file system has no locks.

    Raises:
        BlockingIOError: somebody else holds it and `wait` is False.
        OSError: it cannot be opened.
    """
    if fcntl is None:
        yield False
        return
    handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield _lock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(handle)


def _lock(handle: int, how: int) -> bool:
    try:
        fcntl.flock(handle, how)  # type: ignore[union-attr]  # there is one: see `locked`
    except BlockingIOError:
        raise
    except OSError:  # of a file system without locks
        return False
    return True


def write_atomically(path: pathlib.Path, write: Callable[[BinaryIO], object]) -> None:
    """Calls write(binary file, which it may also read) on a temporary file, flushes it to the disk and renames it.

    The folder is made if need be.

    Raises:
        NotWritten: the disk is full, or the folder cannot be written; what was at `path` before is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Writes a file, see `write_atomically`."""
    write_atomically(path, lambda file: file.write(content))


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file in UTF-8, see `write_atomically`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: pathlib.Path, values: Any) -> None:
    """Writes a JSON file, see `write_atomically`."""
    write_text(path, json.dumps(values, indent=1) + "\n")


def remove_leftovers(*paths: pathlib.Path) -> None:
    """Removes what `write_atomically` of killed processes left; only for who holds the lock of all who write there.

    Args:
        *paths: the files; a name may have wildcards.
    """
    for path in paths:
        for leftover in path.parent.glob(f".{path.name}.*.tmp"):
            leftover.unlink(missing_ok=True)


def write_folder(
    path: pathlib.Path, fill: Callable[[pathlib.Path], None], keep: Callable[[], bool] = lambda: False
) -> None:
    """Calls fill(temporary folder), flushes what it wrote to the disk and renames the folder to `path`.

    Args:
        path: the folder; one that is there is replaced.
        fill: writes into the folder it is given.
        keep: asked last: whether what is at `path` by then is to stay, and the new folder to go.

    Raises:
        NotWritten: the disk is full, or the place cannot be written; a folder that was at `path` before is still there.

    Example:
        >>> write_folder(pathlib.Path("model"), lambda folder: (folder / "a.txt").write_text("whole"))
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_beside(path, fill, keep)
    except OSError as error:  # of a file inside, it names that by the temporary folder
        raise NotWritten(path, error) from error


def _write_beside(path: pathlib.Path, fill: Callable[[pathlib.Path], None], keep: Callable[[], bool]) -> None:
    token = uuid.uuid4().hex
    temporary, before = (path.with_name(f".{path.name}.{token}.{end}") for end in ("tmp", "old"))
    temporary.mkdir()
    with locked(temporary, folder=True):
        try:
            _remove_folders(path)
            fill(temporary)
            _flush_tree(temporary)
            if keep():
                return
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


def _remove_folders(path: pathlib.Path) -> None:
    """Puts back, or removes, what processes that were killed while they wrote the folder `path` left beside it."""
    for end in ("old", "tmp"):
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 32}.{end}"):
            # An error: somebody removed it, or holds it
            with contextlib.suppress(OSError), locked(leftover, wait=False, folder=True) as dead:
                if dead and end == "old" and not path.exists():
                    os.rename(leftover, path)
                elif dead:
                    shutil.rmtree(leftover)


def _flush_tree(folder: pathlib.Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            _flush(pathlib.Path(parent, name))
        _flush_folder(pathlib.Path(parent))


def _flush_folder(folder: pathlib.Path) -> None:
    with contextlib.suppress(OSError):  # folders cannot be opened on Windows, nor flushed on every file system
        _flush(folder)


def _flush(path: pathlib.Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
