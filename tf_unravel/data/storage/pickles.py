"""Reading pickled datasets without running what they say, and without holding their pixels in memory.

A pickle is a program: `pickle.load` of a downloaded file may run anything, and needs two to three times the memory of
the array it holds. Here the file is read opcode by opcode; strings of more than 64 KiB (the arrays' bytes) are passed
over and their place in the file is noted. The small rest goes through an unpickler that knows NumPy arrays, dtypes and
scalars, the containers of `builtins` and `codecs.encode`, and nothing else, each by a stand-in of its own: no code of
NumPy's or of anybody else's runs. An array comes back as a `PickledArray`, which copies its bytes from the file into
memory of the caller's, a few MiB at a time.

Read are all protocols, of Python 2 (byte strings are read as Latin-1, as NumPy's pickles need) and of Python 3.
"""

from __future__ import annotations

import codecs
import io
import math
import os
import pickle
import pickletools
import re
import struct
import uuid
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np

_LARGE = 1 << 16
_MOST_SMALL = 1 << 27  # bytes of everything but the arrays
_BLOCK = 1 << 20
_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}


class _Payload(NamedTuple):
    """A long string that stayed in the file: where, how long, and how it is written (see `_blocks`)."""

    offset: int
    length: int
    encoding: str


def read_pickle(file: BinaryIO, path: str | os.PathLike[str]) -> Any:
    """The contents of a pickle of containers, numbers, text and NumPy arrays.

    Args:
        file: open for reading in binary, seekable, at its beginning; must stay open while its arrays are read.
        path: names it in messages.

    Returns:
        The unpickled object, arrays as `PickledArray`, byte strings of Python 2 as str, keys of dicts always as str.

    Raises:
        ValueError: a web page, an archive, a damaged or truncated file, or a pickle that asks for any other global.

    Example:
        >>> file = io.BytesIO(pickle.dumps({"data": np.zeros((2, 4, 4, 3), np.uint8)}))
        >>> read_pickle(file, "example.pickle")["data"].shape
        (2, 4, 4, 3)
    """
    try:
        _check_beginning(file, path)
        skeleton, payloads = _skeleton(file, path)
        contents = _RestrictedUnpickler(skeleton, payloads, file, path).load()
        return _with_text_keys(contents)
    except (ValueError, EOFError, LookupError, TypeError, AttributeError, ArithmeticError, MemoryError, RecursionError,
            struct.error, pickle.UnpicklingError) as error:  # fmt: skip
        if str(error).startswith(str(path)):
            raise
        raise _damaged(path, error) from error


def _damaged(path: str | os.PathLike[str], error: object) -> ValueError:
    return ValueError(f"{path} is damaged or truncated ({' '.join(str(error).split())}); download it again.")


def _check_beginning(file: BinaryIO, path: str | os.PathLike[str]) -> None:
    beginning = file.read(64)
    file.seek(0)
    if not beginning:
        raise ValueError(f"{path} is empty; download it again.")
    if beginning.lstrip().startswith(b"<"):
        raise ValueError(f"{path} starts with '<': an HTML page, not a pickle; download it again.")
    if beginning.startswith((b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zXZ")):
        raise ValueError(f"{path} is an archive, not a pickle; unpack it first.")


def _with_text_keys(contents: Any) -> Any:
    if isinstance(contents, dict):
        return {k.decode("latin1") if isinstance(k, bytes) else k: _with_text_keys(v) for k, v in contents.items()}
    return contents


# Opcode by opcode


def _skeleton(file: BinaryIO, path: str | os.PathLike[str]) -> tuple[bytes, dict[str, _Payload]]:
    """(the pickle with a short name in place of each long string, {name: where the string is})."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    kept, secret = bytearray(), uuid.uuid4().hex
    payloads: dict[str, _Payload] = {}
    while True:
        code = file.read(1)
        opcode = _OPCODES.get(code.decode("latin1")) if code else None
        if opcode is None:
            raise _damaged(path, f"byte {code!r} at {file.tell() - 1} is no pickle" if code else "it ends early")
        body, payload = _argument(file, opcode)
        if opcode.name in ("PUT", "LONG_BINPUT") and _index(opcode.name, body) > file.tell():
            raise _damaged(path, "a memo beyond its size")  # the unpickler would reserve memory for all before it
        if payload is not None:
            if payload.offset + payload.length > size:
                raise ValueError(
                    f"{path} is truncated: {payload.length} bytes should follow at {payload.offset}, "
                    f"but the file has {size}; download it again."
                )
            name = f"payload {len(payloads)} {secret}"
            payloads[name] = payload
            kept += _short(opcode.name, name.encode("ascii"))
        elif opcode.name != "FRAME":  # frames are hints for reading ahead, and their lengths are no longer true
            kept += code + body
        if len(kept) > _MOST_SMALL:
            raise ValueError(f"{path} does not hold its images in one array; this layout is not supported.")
        if opcode.name == "STOP":
            return bytes(kept), payloads


def _argument(file: BinaryIO, opcode: pickletools.OpcodeInfo) -> tuple[bytes, _Payload | None]:
    """The opcode's argument as it stands in the file, or where it is if it is long."""
    if opcode.arg is None:
        return b"", None
    if opcode.arg.n >= 0:
        return _exactly(file, opcode.arg.n), None
    if opcode.arg.n == pickletools.UP_TO_NEWLINE:
        lines = 2 if opcode.name in ("GLOBAL", "INST") else 1
        start = file.tell()
        body = b"".join(file.readline(_LARGE) for _ in range(lines))
        if body.endswith(b"\n"):
            return body, None
        if opcode.name not in ("STRING", "UNICODE") or len(body) < _LARGE:
            raise EOFError(f"{opcode.name} at {start} has no end")
        end = _next_newline(file)
        if opcode.name == "UNICODE":
            return b"", _Payload(start, end - start, "raw-unicode-escape")
        return b"", _Payload(start + 1, end - start - 2, "string-escape")  # without the quotes
    width = {
        pickletools.TAKEN_FROM_ARGUMENT1: 1,
        pickletools.TAKEN_FROM_ARGUMENT4: 4,
        pickletools.TAKEN_FROM_ARGUMENT4U: 4,
        pickletools.TAKEN_FROM_ARGUMENT8U: 8,
    }[opcode.arg.n]
    prefix = _exactly(file, width)
    length = int.from_bytes(prefix, "little")
    if length <= _LARGE:
        return prefix + _exactly(file, length), None
    start = file.tell()
    file.seek(start + length)
    return b"", _Payload(start, length, "utf-8" if "UNICODE" in opcode.name else "raw")


def _index(name: str, body: bytes) -> int:
    return int(body) if name == "PUT" else int.from_bytes(body, "little")


def _exactly(file: BinaryIO, length: int) -> bytes:
    found = file.read(length)
    if len(found) < length:
        raise EOFError("it ends early")
    return found


def _next_newline(file: BinaryIO) -> int:
    """Position of the next newline; the file then stands behind it."""
    while block := file.read(_BLOCK):
        at = block.find(b"\n")
        if at >= 0:
            return file.seek(file.tell() - len(block) + at + 1) - 1
    raise EOFError("it ends early")


def _short(name: str, value: bytes) -> bytes:
    """An opcode that pushes the short `value` with the type that the long string had."""
    if name in ("BINBYTES", "BINBYTES8"):
        return pickle.SHORT_BINBYTES + bytes([len(value)]) + value
    if name == "BYTEARRAY8":
        return pickle.BYTEARRAY8 + len(value).to_bytes(8, "little") + value
    if name in ("UNICODE", "BINUNICODE", "BINUNICODE8"):
        return pickle.BINUNICODE + len(value).to_bytes(4, "little") + value
    if name in ("STRING", "BINSTRING"):
        return pickle.SHORT_BINSTRING + bytes([len(value)]) + value
    raise ValueError(f"a value of {name} is too long")


# The few objects that a dataset needs


class PickledArray:
    """A NumPy array inside a pickle file; its values stay there until they are asked for.

    Attributes:
        shape: as of the array.
        dtype: as of the array.
    """

    __slots__ = ("_fortran", "_most", "_path", "_raw", "_read", "dtype", "shape")

    def __init__(self, read: Callable[[Any], Iterator[bytes]], path: str | os.PathLike[str], most: int) -> None:
        self._read, self._path, self._most = read, path, most
        self.shape: tuple[int, ...] = (0,)
        self.dtype: np.dtype[Any] = np.dtype(np.uint8)
        self._fortran = False
        self._raw: str | bytes | bytearray = b""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        shape, dtype, fortran, raw = state[-4:]
        if not isinstance(dtype, _PickledDType) or not isinstance(raw, (str, bytes, bytearray)):
            raise pickle.UnpicklingError("an array of Python objects")
        self.shape = tuple(int(length) for length in shape)
        if min(self.shape, default=0) < 0:
            raise pickle.UnpicklingError(f"an array of shape {self.shape}")
        self.dtype, self._fortran, self._raw = dtype.dtype(), bool(fortran), raw
        if math.prod(self.shape) * self.dtype.itemsize > self._most:  # who believed it would reserve memory for it
            raise pickle.UnpicklingError(f"an array {self.shape} in a file of {self._most} bytes")

    def copy_into(self, out: np.ndarray) -> None:
        """Copies the values into `out`, C-contiguous, of this shape and dtype, a few MiB at a time.

        Raises:
            ValueError: the file holds fewer or more bytes than the shape asks for, or other bytes than text can mean.
        """
        if out.shape != self.shape or out.dtype != self.dtype or not out.flags.c_contiguous:
            raise ValueError(f"out must be {self.dtype} {self.shape} in C order. Received: {out.dtype} {out.shape}.")
        if self._fortran and sum(length > 1 for length in self.shape) > 1:
            raise ValueError(f"{self._path}: an array is stored in columns; save it through np.ascontiguousarray.")
        try:
            self._copy(out.reshape(-1).view(np.uint8))
        except (ValueError, EOFError) as error:
            raise _damaged(self._path, error) from error

    def _copy(self, target: np.ndarray) -> None:
        filled = 0
        for block in self._read(self._raw):
            if filled + len(block) > len(target):
                raise ValueError(f"an array has more bytes than its shape {self.shape} needs")
            target[filled : filled + len(block)] = np.frombuffer(block, np.uint8)
            filled += len(block)
        if filled != len(target):
            raise ValueError(f"an array has {filled} bytes instead of {len(target)}")

    def array(self) -> np.ndarray:
        """The values, in memory; for small arrays."""
        if math.prod(self.shape) * self.dtype.itemsize > _MOST_SMALL:
            raise ValueError(f"{self._path}: an array {self.shape} is too large to be read at once.")
        values = np.empty(self.shape, self.dtype)
        self.copy_into(values)
        return values


class _PickledDType:
    """A dtype: bool, integers and floats only."""

    __slots__ = ("_order", "_text")

    def __init__(self, text: str | bytes, *_: Any) -> None:
        self._text = text.decode("latin1") if isinstance(text, bytes) else str(text)
        self._order = "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]
        self._order = order.decode("latin1") if isinstance(order, bytes) else str(order)

    def dtype(self) -> np.dtype[Any]:
        if not re.fullmatch("[buif][1248]", self._text) or self._order not in tuple("<>|="):
            raise pickle.UnpicklingError(f"an array of dtype {self._order}{self._text}")
        return np.dtype(self._order + self._text) if self._order in "<>" else np.dtype(self._text)


def _container(kind: type) -> Callable[..., Any]:
    def build(*arguments: Any) -> Any:
        if any(isinstance(argument, int) for argument in arguments):  # bytes(10**12)
            raise pickle.UnpicklingError(f"{kind.__name__} of a number")
        return kind(*arguments)

    return build


class _RestrictedUnpickler(pickle.Unpickler):
    """Knows arrays, dtypes, scalars, containers and codecs.encode, by stand-ins that belong to this one load."""

    def __init__(
        self, skeleton: bytes, payloads: dict[str, _Payload], file: BinaryIO, path: str | os.PathLike[str]
    ) -> None:
        super().__init__(io.BytesIO(skeleton), encoding="latin1")
        self._path = path
        most = file.seek(0, os.SEEK_END)  # bytes that all arrays have together: none is written in less than one

        def read(raw: str | bytes | bytearray) -> Iterator[bytes]:
            text = raw if isinstance(raw, str) else bytes(raw).decode("latin1")
            return _blocks(file, payloads[text]) if text in payloads else iter([text.encode("latin1")])

        def reconstruct(*_: Any) -> PickledArray:
            return PickledArray(read, path, most)

        def from_buffer(raw: Any, dtype: _PickledDType, shape: tuple[int, ...], order: str = "C") -> PickledArray:
            array = PickledArray(read, path, most)
            array.__setstate__((shape, dtype, order == "F", raw))
            return array

        def scalar(dtype: _PickledDType, raw: str | bytes) -> Any:
            array = from_buffer(raw, dtype, ())
            return array.array().item()

        def encode(text: str, encoding: str = "latin1", *_: Any) -> bytes:
            if encoding.lower().replace("-", "") not in ("latin1", "ascii", "utf8"):
                raise pickle.UnpicklingError(f"codecs.encode to {encoding!r}")
            return text.encode(encoding)

        self._known: dict[tuple[str, str], Any] = {
            ("numpy", "ndarray"): lambda *_: None,
            ("numpy", "dtype"): lambda *arguments: _PickledDType(*arguments),
            ("_codecs", "encode"): encode,
            ("codecs", "encode"): encode,
        }
        for core in ("numpy.core", "numpy._core"):
            self._known[f"{core}.multiarray", "_reconstruct"] = reconstruct
            self._known[f"{core}.multiarray", "scalar"] = scalar
            self._known[f"{core}.numeric", "_frombuffer"] = from_buffer
        for kind in (list, dict, tuple, set, frozenset, bytes, bytearray):
            self._known["builtins", kind.__name__] = self._known["__builtin__", kind.__name__] = _container(kind)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._known:
            asked = " ".join(f"{module}.{name}".split())
            raise ValueError(
                f"{self._path} asks for {asked}, which no dataset needs: it was not loaded; "
                f"get the file from a source you trust."
            )
        return self._known[module, name]


def _blocks(file: BinaryIO, payload: _Payload) -> Iterator[bytes]:
    """The string's bytes, a few MiB at a time, as they were before pickling."""
    position, end, carried = payload.offset, payload.offset + payload.length, b""
    utf8 = codecs.getincrementaldecoder("utf-8")()
    while position < end:
        file.seek(position)
        block = _exactly(file, min(_BLOCK, end - position))
        position += len(block)
        if payload.encoding == "raw":
            yield block
        elif payload.encoding == "utf-8":
            yield utf8.decode(block, position == end).encode("latin1")
        else:
            block = carried + block
            cut = len(block) if position == end else _WHOLE[payload.encoding](block)
            carried = block[cut:]
            yield _UNESCAPE[payload.encoding](block[:cut])


def _whole_string_escapes(block: bytes) -> int:
    r"""Length of the part of `block` that ends in no half escape: \x4, or a backslash that begins one."""
    last = block.rfind(b"\\", max(0, len(block) - 4))
    if last < 0:
        return len(block)
    run = last - len(block[: last + 1].rstrip(b"\\")) + 1  # an even run is one of escaped backslashes
    return last if run % 2 else len(block)


def _whole_unicode_escapes(block: bytes) -> int:
    r"""The same for \uXXXX, as which this encoding writes backslashes too."""
    last = block.rfind(b"\\", max(0, len(block) - 6))
    return len(block) if last < 0 else last


_WHOLE = {"string-escape": _whole_string_escapes, "raw-unicode-escape": _whole_unicode_escapes}
_UNESCAPE: dict[str, Callable[[bytes], bytes]] = {
    "string-escape": lambda block: codecs.escape_decode(block)[0],
    "raw-unicode-escape": lambda block: block.decode("raw-unicode-escape").encode("latin1"),
}
