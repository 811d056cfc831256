"""Faults that tests make: disks that are full, folders that are read-only."""

import builtins
import contextlib
import ctypes
import errno
import os
import pathlib
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Makes the system refuse to write files beyond `size` bytes: the write that passes it is cut short."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class _Disk:
    """A file on a disk with `room` bytes left: what still fits is written, then "No space left on device"."""

    def __init__(self, file: Any, room: int):
        self._file, self._room = file, room

    def write(self, data: Any) -> int:
        data = data if isinstance(data, str) else memoryview(data).cast("B")
        self._file.write(data[: self._room])
        if len(data) > self._room:
            self._room = 0
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._room -= len(data)
        return len(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_Disk":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def open_on_full_disk(part_of_name: str, room: int) -> Callable[..., Any]:
    """`open`, but files that are written and have this in their names lie on a disk with `room` bytes left."""

    def opened(path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        file = builtins.open(path, mode, *arguments, **options)
        return _Disk(file, room) if part_of_name in str(path) and mode[0] in "wa" else file

    return opened


@contextlib.contextmanager
def tmpfs(folder: pathlib.Path, kilobytes: int) -> Iterator[Callable[[int], None]]:
    """A file system of this size at `folder`; gives a function that changes the size."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root on Linux")
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o"]
    if subprocess.run([*mount, f"size={kilobytes}k", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        yield lambda size: subprocess.run([*mount, f"remount,size={size}k", "tmpfs", str(folder)], check=True)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Capabilities(ctypes.Structure):
    _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32)]


@contextlib.contextmanager
def bound_by_permissions() -> Iterator[None]:
    """Makes permissions count for this thread even where it is root's."""
    if os.geteuid() != 0:
        yield
        return
    if not sys.platform.startswith("linux"):
        pytest.skip("root is bound by no permissions here")
    libc, header = ctypes.CDLL(None, use_errno=True), _Header(0x20080522, 0)
    before, none = (_Capabilities * 2)(), (_Capabilities * 2)()
    if libc.capget(ctypes.byref(header), before):
        pytest.skip("capabilities cannot be read")
    for i in range(2):
        none[i].permitted = before[i].permitted
    libc.capset(ctypes.byref(header), none)
    try:
        yield
    finally:
        libc.capset(ctypes.byref(header), before)
