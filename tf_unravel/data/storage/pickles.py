"""Reading pickled datasets without running what they say.

A pickle is a program: `pickle.load` of a downloaded file may run anything. Here an unpickler knows NumPy arrays, dtypes
and scalars, the containers of `builtins` and `codecs.encode`, and nothing else, each by a stand-in that belongs to one
load: no code of NumPy's that trusts its arguments runs. What would make it reserve far more memory than the file has
bytes is refused before it starts.

Read are all protocols, of Python 2 and of Python 3.
"""

from __future__ import annotations

import os
import pickle
import pickletools
import re
import struct
from collections.abc import Callable, Sized
from typing import Any, BinaryIO, TypeVar

import numpy as np

from tf_unravel.data.storage.digests import is_html

_LARGE = 1 << 16
_MOST_SMALL = 1 << 27  # bytes of everything but the arrays: an object can take a hundred times its bytes in the file
_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}
_WIDTHS = {pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT4: 4,
           pickletools.TAKEN_FROM_ARGUMENT4U: 4, pickletools.TAKEN_FROM_ARGUMENT8U: 8}  # fmt: skip
_MISTAKES = (ValueError, EOFError, LookupError, TypeError, AttributeError, ArithmeticError, MemoryError, RecursionError,
             struct.error, pickle.UnpicklingError)  # fmt: skip
_Made = TypeVar("_Made", bound=Sized)


def read_pickle(file: BinaryIO, path: str | os.PathLike[str]) -> Any:
    """The contents of a pickle of containers, numbers, text and NumPy arrays.

    Args:
        file: open for reading in binary, seekable, at its beginning.
        path: names it in messages.

    Returns:
        The unpickled object; strings of Python 2 as bytes, keys of dicts always as str.

    Raises:
        ValueError: a web page, an archive, a damaged or truncated file, or a pickle that asks for any other global.

    Example:
        >>> file = io.BytesIO(pickle.dumps({"data": np.zeros((2, 4, 4, 3), np.uint8)}))
        >>> read_pickle(file, "example.pickle")["data"].shape
        (2, 4, 4, 3)
    """
    try:
        _check_beginning(file, path)
        _check_opcodes(file, path)
        return _plain(_RestrictedUnpickler(file, path).load())
    except _MISTAKES as error:
        if str(error).startswith(str(path)):
            raise
        said = " ".join(str(error).split())
        raise ValueError(f"{path} is damaged or truncated ({said}); download it again.") from error


def _check_beginning(file: BinaryIO, path: str | os.PathLike[str]) -> None:
    beginning = file.read(64)
    file.seek(0)
    if not beginning:
        raise ValueError(f"{path} is empty; download it again.")
    if is_html(beginning):
        raise ValueError(f"{path} starts with '<': an HTML page, not a pickle; download it again.")
    if beginning.startswith((b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zXZ")):
        raise ValueError(f"{path} is an archive, not a pickle; unpack it first.")


def _check_opcodes(file: BinaryIO, path: str | os.PathLike[str]) -> None:
    size, small = file.seek(0, os.SEEK_END), 0
    start, name = file.seek(0), ""
    while name != "STOP":
        code = file.read(1).decode("latin1")
        if code not in _OPCODES:
            raise ValueError(f"byte {code!r} at {start} is no pickle" if code else "it ends early")
        name, argument = _OPCODES[code].name, _argument(file, _OPCODES[code])
        # The unpickler reserves memory for every number below the largest.
        if (name == "PUT" and int(argument) > start) or (name == "LONG_BINPUT" and _number(argument) > start):
            raise ValueError("a memo beyond its size")
        start, before = file.tell(), start
        if start > size:
            raise ValueError(f"{start - before} bytes should follow at {before}, but it has {size}")
        small += start - before if start - before <= _LARGE else 0
        if small > _MOST_SMALL:
            raise ValueError(f"{path} does not hold its images in one array; this layout is not supported.")
    file.seek(0)


def _argument(file: BinaryIO, opcode: pickletools.OpcodeInfo) -> bytes:
    """Passes over the argument of an opcode; gives it where it is a number."""
    if opcode.arg is None:
        return b""
    if opcode.arg.n == pickletools.UP_TO_NEWLINE:
        return b"".join(file.readline() for _ in range(2 if opcode.name in ("GLOBAL", "INST") else 1))
    argument = file.read(opcode.arg.n if opcode.arg.n >= 0 else _WIDTHS[opcode.arg.n])
    if opcode.arg.n < 0:
        file.seek(_number(argument), os.SEEK_CUR)
    return argument


def _number(argument: bytes) -> int:
    return int.from_bytes(argument, "little")


def _plain(contents: Any) -> Any:
    """Arrays as NumPy's, and keys as text, however deep in dicts."""
    if isinstance(contents, dict):
        return {k.decode("latin1") if isinstance(k, bytes) else k: _plain(v) for k, v in contents.items()}
    return contents.values if isinstance(contents, _Array) else contents


class _DType:
    """A dtype: bool, integers and floats only."""

    __slots__ = ("_order", "_text")

    def __init__(self, text: str | bytes, *_: Any) -> None:
        self._text, self._order = _text(text), "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._order = _text(state[1])

    def dtype(self) -> np.dtype[Any]:
        if not re.fullmatch("[buif][1248]", self._text) or self._order not in tuple("<>|="):
            raise pickle.UnpicklingError(f"an array of dtype {self._order}{self._text}")
        return np.dtype(self._order + self._text) if self._order in "<>" else np.dtype(self._text)


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


class _Array:
    """An array; its values are there once its state is set."""

    __slots__ = ("_load", "values")

    def __init__(self, load: _RestrictedUnpickler) -> None:
        self._load, self.values = load, np.empty(0, np.uint8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        shape, dtype, fortran, raw = state[-4:]
        if not isinstance(dtype, _DType) or not isinstance(raw, (str, bytes, bytearray)):
            raise pickle.UnpicklingError("an array of Python objects")
        raw = self._load.counted(raw.encode("latin1")) if isinstance(raw, str) else raw
        shape = tuple(int(length) for length in shape)
        if min(shape, default=0) < 0:
            raise pickle.UnpicklingError(f"an array of shape {shape}")
        self.values = np.frombuffer(raw, dtype.dtype()).reshape(shape, order="F" if fortran else "C")


class _RestrictedUnpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, path: str | os.PathLike[str]) -> None:
        super().__init__(file, encoding="bytes")
        self._path, self._room = path, file.seek(0, os.SEEK_END)
        file.seek(0)

        def array(shape: Any, dtype: Any, raw: Any, order: str = "C") -> _Array:
            made = _Array(self)
            made.__setstate__((shape, dtype, order == "F", raw))
            return made

        def encode(text: str, encoding: str | bytes = "latin1", *_: Any) -> bytes:
            if _text(encoding).lower().replace("-", "") not in ("latin1", "ascii", "utf8"):
                raise pickle.UnpicklingError(f"codecs.encode to {encoding!r}")
            return self.counted(text.encode(_text(encoding)))

        self._known: dict[tuple[str, str], Any] = {
            ("numpy", "ndarray"): lambda *_: None,
            ("numpy", "dtype"): lambda *arguments: _DType(*arguments),
            ("_codecs", "encode"): encode,
            ("codecs", "encode"): encode,
        }
        for core in ("numpy.core", "numpy._core"):
            self._known[f"{core}.multiarray", "_reconstruct"] = lambda *_: _Array(self)
            self._known[f"{core}.multiarray", "scalar"] = lambda dtype, raw: array((), dtype, raw).values.item()
            self._known[f"{core}.numeric", "_frombuffer"] = lambda raw, dtype, shape, order="C": array(
                shape, dtype, raw, order)  # fmt: skip
        for kind in (list, dict, tuple, set, frozenset, bytes, bytearray):
            self._known["builtins", kind.__name__] = self._known["__builtin__", kind.__name__] = self._container(kind)

    def _container(self, kind: type[Any]) -> Callable[..., Any]:
        def build(*arguments: Any) -> Any:
            if any(isinstance(argument, int) for argument in arguments):  # bytes(10**12)
                raise pickle.UnpicklingError(f"{kind.__name__} of a number")
            arguments = tuple(_text(each) if kind in (bytes, bytearray) and place else each
                              for place, each in enumerate(arguments))  # fmt: skip
            return self.counted(kind(*arguments))

        return build

    def counted(self, made: _Made) -> _Made:
        """What a stand-in makes, once it is known that all of them make no more than the file could have held."""
        self._room -= len(made)
        if self._room < 0:
            raise pickle.UnpicklingError("it makes more than it holds")
        return made

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._known:
            asked = " ".join(f"{module}.{name}".split())
            raise ValueError(
                f"{self._path} asks for {asked}, which no dataset needs: it was not loaded; "
                f"get the file from a source you trust."
            )
        return self._known[module, name]
