"""Arrays computed once and kept on disk, read back as memory maps.

An entry is a folder of `.npy` files and an `entry.json` that lists each file's shape, dtype and size. It is written
under a temporary name, flushed to the disk and renamed into place: an entry is whole or absent. Processes that want
the same entry at once wait for the one that builds it; where the file system has no locks each builds its own and the
first to finish wins. An entry whose files are missing or of the wrong size is rebuilt with a warning.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import pathlib
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tf_unravel.files import NotWritten, locked, write_folder

_FORMAT = 1
_PATIENCE = 50
_NO_ROOM = tuple(
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EACCES", "EROFS", "EPERM", "ENOTDIR")
    if hasattr(errno, name)  # Windows has no quotas
)
_log = logging.getLogger(__name__)

Create = Callable[[str, tuple[int, ...], Any], np.ndarray]


def cache_folder() -> pathlib.Path:
    """The folder of all entries: TF_UNRAVEL_CACHE, else XDG_CACHE_HOME/tf_unravel, else ~/.cache/tf_unravel.

    As its specification has it, an XDG_CACHE_HOME that is not absolute counts as unset.
    """
    chosen, shared = (os.environ.get(name, "") for name in ("TF_UNRAVEL_CACHE", "XDG_CACHE_HOME"))
    if chosen:
        return pathlib.Path(chosen).expanduser()
    return pathlib.Path(shared if os.path.isabs(shared) else pathlib.Path.home() / ".cache") / "tf_unravel"


def cached_arrays(key: str, build: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of entry `key`, built on first use.

    Args:
        key: names the entry by its contents: everything that decides them must be in it, a version of the code that
            builds them included. Any text; what stands before the first space, colon or slash begins the folder's name.
        build: called without arguments when the entry is absent or damaged; returns {name: array}.

    Returns:
        {name: array}, read-only memory maps.

    Raises:
        ValueError: the cache folder cannot be written.

    Example:
        >>> arrays = cached_arrays("squares/10", lambda: {"squares": np.arange(10) ** 2})
    """

    return cached_fill(key, lambda create: store(create, **build()))


def store(create: Create, **arrays: Any) -> None:
    """Writes small arrays, or what NumPy makes one of, by the `create` that `cached_fill` gives."""
    for name, value in arrays.items():
        array = np.asarray(value)
        create(name, array.shape, array.dtype)[...] = array


def cached_fill(key: str, fill: Callable[[Create], None]) -> dict[str, np.ndarray]:
    """Like `cached_arrays`, for arrays too large to be held twice: `fill` writes straight into the files.

    Args:
        key: names the entry by its contents.
        fill: called as fill(create); create(name, shape, dtype) returns a writable memory map of that file, zeroed,
            with its space on the disk reserved.

    Returns:
        {name: array}, read-only memory maps.

    Raises:
        ValueError: the cache folder cannot be written.
    """
    folder = cache_folder() / _folder_name(key)
    arrays = _read(folder, key)
    if arrays is not None:
        return arrays
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f".{folder.name}.lock")):
            arrays = _read(folder, key)  # somebody else may have built it while this process waited
            return arrays if arrays is not None else _build(folder, key, fill)
    except OSError as raised:
        error = raised.error if isinstance(raised, NotWritten) else raised
        elsewhere = error.filename is not None and not str(error.filename).startswith(str(folder.parent))
        if error.errno not in _NO_ROOM or elsewhere:  # of what was to be kept, then
            raise error from None
        raise ValueError(
            f"the cache folder {folder.parent} cannot be written ({error.strerror}): free space there, or set the "
            f"environment variable TF_UNRAVEL_CACHE to another folder."
        ) from error


def _folder_name(key: str) -> str:
    readable = re.sub(r"[^A-Za-z0-9_.-]", "_", re.split(r"[\s/:]", key, maxsplit=1)[0])[:40] or "entry"
    return f"{readable}-{hashlib.sha256(f'{_FORMAT}:{key}'.encode()).hexdigest()[:20]}"


def _read(folder: pathlib.Path, key: str) -> dict[str, np.ndarray] | None:
    """The entry's arrays, or None when it is absent or damaged (with a warning)."""
    if not folder.exists():
        return None
    try:
        entry = json.loads((folder / "entry.json").read_text(encoding="utf-8"))
        if entry["format"] != _FORMAT or entry["key"] != key:
            raise ValueError("entry.json describes something else")
        return {name: _open(folder / f"{name}.npy", described) for name, described in entry["arrays"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _log.warning("cache entry %s is damaged (%s); building it again.", folder, error)
        return None


def _open(path: pathlib.Path, described: Mapping[str, Any]) -> np.ndarray:
    size = path.stat().st_size
    if size != described["bytes"]:
        raise ValueError(f"{path.name} has {size} bytes instead of {described['bytes']}")
    empty = 0 in described["shape"]  # an empty file region cannot be mapped
    array = np.load(path, mmap_mode=None if empty else "r", allow_pickle=False)
    if list(array.shape) != described["shape"] or array.dtype.str != described["dtype"]:
        raise ValueError(f"{path.name} holds {array.dtype} {array.shape}")
    return array


def _build(folder: pathlib.Path, key: str, fill: Callable[[Create], None]) -> dict[str, np.ndarray]:
    def fill_folder(temporary: pathlib.Path) -> None:
        arrays: dict[str, np.ndarray] = {}

        def create(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
            if not re.fullmatch(r"[A-Za-z0-9_]+", name) or name in arrays:
                raise ValueError(f"array names are letters, digits and '_', each once. Received: {name!r}.")
            arrays[name] = _create(temporary / f"{name}.npy", tuple(shape), np.dtype(dtype))
            return arrays[name]

        fill(create)
        described = {}
        for name, array in arrays.items():
            if isinstance(array, np.memmap):
                array.flush()
            size = (temporary / f"{name}.npy").stat().st_size
            described[name] = {"bytes": size, "shape": list(array.shape), "dtype": array.dtype.str}
        entry = {"format": _FORMAT, "key": key, "arrays": described}
        (temporary / "entry.json").write_text(json.dumps(entry, indent=1), encoding="utf-8")

    write_folder(folder, fill_folder, keep=lambda: _read(folder, key) is not None)
    for _ in range(_PATIENCE):  # without locks another process may be putting its own, equal entry here right now
        finished = _read(folder, key)
        if finished is not None:
            return finished
        time.sleep(0.02)
    raise ValueError(f"cache entry {folder} cannot be read back: delete it, or set TF_UNRAVEL_CACHE.")


def _create(path: pathlib.Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    if dtype.hasobject:
        raise ValueError(f"only plain arrays can be cached. Received: {path.stem} of dtype {dtype}.")
    if 0 in shape:
        np.save(path, np.zeros(shape, dtype))
        return np.zeros(shape, dtype)
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):  # a full disk is an error here; later it would kill the process (SIGBUS)
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    return array
