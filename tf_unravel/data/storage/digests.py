"""Digests of files: what cache entries are keyed by, and what official archives are checked against.

Reading every byte of a dataset at each start would be slow, so the digest of a set of files is remembered under their
names, sizes, modification and change times (as git's index does), and files are read again when any of these differs.
Files touched within the last seconds are always read: a second change might leave the times as they are.
"""

from __future__ import annotations

import hashlib
import os
import time
import unicodedata
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tf_unravel.data.storage import cache
from tf_unravel.machine import num_cores

_RECENT_SECONDS = 2.0
_BLOCK = 1 << 20
_FILES_PER_TASK = 256
_HASH_BYTES = 32  # of SHA-256


def file_hash(path: str | os.PathLike[str], algorithm: str = "sha256") -> bytes:
    """The hash of one file's bytes, read a block at a time."""
    digest = hashlib.new(algorithm)
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.digest()


def digest_of_files(root: str | os.PathLike[str], relative_paths: Sequence[str]) -> str:
    """Hex SHA-256 of the names and bytes of files, in the order given, remembered while the files stay untouched.

    `root`, the folder that the paths are relative to, is no part of it, so that a copy has the same digest. What is
    unreadable, or no file, counts by name.
    """
    return _summary(os.path.abspath(root), relative_paths)[0]


def hashes_of_files(root: str | os.PathLike[str], relative_paths: Sequence[str], remember: bool = True) -> np.ndarray:
    """SHA-256 of each file's bytes, uint8 [N, 32]; zeros for what is unreadable, or no file.

    Remembered as by `digest_of_files`, unless `remember` is False: the cache is then left alone.
    """
    return (_summary if remember else _digest)(os.path.abspath(root), relative_paths)[1]


def _summary(root: str, relative_paths: Sequence[str]) -> tuple[str, np.ndarray]:
    """(the digest of all, the hash of each), remembered."""
    states: list[tuple[object, ...]] = []
    newest = 0.0
    for path in relative_paths:
        try:
            found = os.stat(os.path.join(root, path))
        except OSError:
            states.append((path, None))
            continue
        states.append((path, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino))
        newest = max(newest, found.st_mtime, found.st_ctime)
    if newest > time.time() - _RECENT_SECONDS:
        return _digest(root, relative_paths)
    key = digest_of_text(repr((root, states)))

    def build() -> dict[str, np.ndarray]:
        digest, hashes = _digest(root, relative_paths)
        return {"digest": np.array(digest), "hashes": hashes}

    built = cache.cached_arrays(f"hashes/{key}", build)
    return str(built["digest"]), built["hashes"]


def cached_of_files(
    name: str,
    root: str | os.PathLike[str],
    relative_paths: Sequence[str],
    key: Callable[[str], str],
    fill: Callable[[cache.Create], None],
) -> dict[str, np.ndarray]:
    """The arrays that `fill` makes of files, from the cache: `cache.cached_fill`, keyed by the files' digest.

    Args:
        name: of the split, for messages.
        root: as for `digest_of_files`.
        relative_paths: as for `digest_of_files`.
        key: digest -> key of the entry.
        fill: see `cache.cached_fill`.

    Raises:
        ValueError: the files were changed while they were read, so that the entry would not be what its key says.
    """
    digest = digest_of_files(root, relative_paths)

    def checked(create: cache.Create) -> None:
        fill(create)
        if digest_of_files(root, relative_paths) != digest:
            raise ValueError(f"{name}: files in {root} were changed while they were read; run the same command again.")

    return cache.cached_fill(key(digest), checked)


def _digest(root: str, relative_paths: Sequence[str]) -> tuple[str, np.ndarray]:
    def hashes(paths: Sequence[str]) -> list[bytes]:
        return [_hash_or_nothing(os.path.join(root, path)) for path in paths]

    parts = [relative_paths[i : i + _FILES_PER_TASK] for i in range(0, len(relative_paths), _FILES_PER_TASK)]
    whole, each = hashlib.sha256(), bytearray()
    with ThreadPoolExecutor(num_cores()) as pool:  # reading and hashing release the interpreter lock
        for paths, found in zip(parts, pool.map(hashes, parts), strict=True):
            for path, digest in zip(paths, found, strict=True):
                whole.update(path.replace(os.sep, "/").encode("utf-8", "surrogateescape") + b"\0" + digest)
                each += digest or bytes(_HASH_BYTES)
    return whole.hexdigest(), np.frombuffer(bytes(each), np.uint8).reshape(-1, _HASH_BYTES)


def _hash_or_nothing(path: str) -> bytes:
    try:
        return file_hash(path) if os.path.isfile(path) else b""  # a pipe would be waited for
    except OSError:
        return b""


def printable(path: str) -> str:
    """A path as text that can be printed, whatever bytes it is made of."""
    return os.fsencode(path).decode("utf-8", "replace")


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC): macOS and Linux write one accented name as different characters."""
    return unicodedata.normalize("NFC", name)


def digest_of_text(text: str) -> str:
    """Hex digest of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def is_html(beginning: bytes) -> bool:
    """Whether a file's first bytes are those of a web page, which a failed download leaves behind."""
    return beginning[:64].lstrip().startswith(b"<")


def check_hash(path: str | os.PathLike[str], algorithm: str, expected: str) -> None:
    """Raises ValueError unless a downloaded file has its published hash; says whether it is a web page.

    Args:
        path: the file.
        algorithm: "md5" or "sha256".
        expected: hexadecimal digits.
    """
    received = file_hash(path, algorithm).hex()
    if received == expected:
        return
    with open(path, "rb") as file:
        if is_html(file.read(64)):
            raise ValueError(f"{path} starts with '<': a web page, not the archive; download it again.")
        size = file.seek(0, os.SEEK_END)
    raise ValueError(
        f"{path} is not the published file (truncated or changed); download it again. "
        f"Received: {algorithm} {received} ({size} bytes) instead of {expected}."
    )
