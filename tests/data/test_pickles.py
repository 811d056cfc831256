"""The restricted unpickler: every protocol, nothing but data, bounded memory, clear messages."""

import io
import os
import pickle
import struct
import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_unravel.data.storage import pickles


def images(count: int = 40) -> np.ndarray:
    made = np.random.default_rng(0).integers(0, 256, (count, 30, 30, 3), dtype=np.uint8)
    made[3], made[4], made[5] = 0, ord("\\"), ord("'")
    return made


def python2_pickle(array: np.ndarray, key: str = "data", labels: tuple[int, ...] = (), protocol: int = 2) -> bytes:
    """What Python 2's cPickle wrote for {key: array, "labels": labels}, byte for byte in the opcodes used."""
    reconstruct = b"cnumpy.core.multiarray\n_reconstruct\n"
    if protocol == 0:
        text = b"(dS'" + key.encode() + b"'\n" + reconstruct + b"(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n("
        text += b"".join(b"I%d\n" % length for length in array.shape) + b"tcnumpy\ndtype\n(S'u1'\nI0\nI1\ntR"
        text += b"(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbI00\nS" + repr(array.tobytes())[1:].encode("ascii") + b"\ntbs"
        return text + b"S'labels'\n(l" + b"".join(b"I%d\na" % label for label in labels) + b"s."
    data = b"\x80\x02}(U" + bytes([len(key)]) + key.encode() + reconstruct + b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    data += b"(K\x01(" + b"".join(b"J" + struct.pack("<i", length) for length in array.shape)
    data += b"tcnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
    data += struct.pack("<i", array.nbytes) + array.tobytes() + b"tbU\x06labels]("
    return data + b"".join(b"J" + struct.pack("<i", label) for label in labels) + b"eu."


def read(data: bytes):
    return pickles.read_pickle(io.BytesIO(data), "some.pickle")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_of_python_3(protocol):
    small = {"small": np.arange(6, dtype=">i4"), "one": np.int64(5), "list": [1, {b"n01": (2, "x")}]}
    contents = {b"data": images(), **small}
    found = read(pickle.dumps(contents, protocol))
    np.testing.assert_array_equal(found["data"], images())
    np.testing.assert_array_equal(found["small"], np.arange(6))
    assert (found["one"], found["list"][1][b"n01"]) == (5, (2, "x"))


@pytest.mark.parametrize("protocol", [0, 2])
def test_python_2(protocol):
    data = python2_pickle(images(), labels=(7, 300), protocol=protocol)
    np.testing.assert_array_equal(pickle.loads(data, encoding="latin1")["data"], images())  # the pickle is a true one
    found = read(data)
    np.testing.assert_array_equal(found["data"], images())
    assert found["labels"] == [7, 300]


class Runs:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("thing", "named"),
    [
        (Runs(os.system, "exit 1"), "posix.system|nt.system"),
        (Runs(eval, "1"), "builtins.eval|__builtin__.eval"),
        (Runs(getattr, [], "append"), ".*getattr"),
        (Runs(np.load, "x"), "numpy.*load"),
        (OrderedDict(a=1), "collections.OrderedDict"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_other_globals_are_refused_by_name(thing, named, protocol):
    with pytest.raises(ValueError, match=rf"^some.pickle asks for ({named}).*not loaded"):
        read(pickle.dumps({"data": thing}, protocol))


def test_arrays_of_objects_are_refused():
    with pytest.raises(ValueError, match="some.pickle.*(object|codecs)"):
        read(pickle.dumps(np.array([{}, []], dtype=object)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><title>Drive</title>", "starts with '<': an HTML page, not a pickle; download it again"),
        (b"\n <html>", "HTML page"),
        (b"PK\x03\x04rest", "is an archive"),
        (b"\x1f\x8brest", "is an archive"),
        (b"hello", "damaged or truncated"),
        (pickle.dumps({"data": images()}, 4)[:60000], "truncated .108005 bytes should follow at 157, but it has 60000"),
        (pickle.dumps({"data": images()}, 2)[:60000], "truncated"),
        (python2_pickle(images(), protocol=0)[:150000], "truncated"),
        (python2_pickle(images(), labels=(1, 2))[:-7], "damaged or truncated"),
        (b"\x80\x04.", "damaged or truncated"),
        (b"\x80\x04c\xff\n\n.", "damaged or truncated"),
        (b"\x80\x04Nr\x00\x00\x00\x70.", "a memo beyond its size"),
    ],
)
def test_what_is_no_pickle_says_so_in_one_line(data, message):
    with pytest.raises(ValueError, match=f"^some.pickle .*{message}") as caught:
        read(data)
    assert "\n" not in str(caught.value)


def test_a_shape_that_the_bytes_do_not_fill():
    more = pickle.dumps({"data": images()}, 4).replace(b"K\x28K\x1e", b"K\x29K\x1e")  # 41 images in the shape
    with pytest.raises(ValueError, match=r"cannot reshape array of size 108000 into shape .41, ?30, ?30, ?3"):
        read(more)


def test_an_array_in_columns():
    array = np.asfortranarray(images())
    np.testing.assert_array_equal(read(pickle.dumps({"data": array}, 4))["data"], array)


PUSH, TUPLE, REDUCE, APPENDS = b"h\x00", b"\x85", b"R", b"e"


@pytest.mark.parametrize(("made", "said"), [
    # An array of 2 GB
    (b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(J\xff\xff\xff\x7ftC\x01btR.", ""),
    (b"c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R.", "bytearray of a number"),
    (b"(lr\xff\xff\xff\x7f.", "a memo beyond its size"),
    (b"X" + struct.pack("<i", 60000) + b"x" * 60000 + b"q\x000(l(" + 40000 * (
        b"c_codecs\nencode\n" + PUSH + TUPLE + REDUCE) + APPENDS + b".", "it makes more than it holds"),  # 2.4 GB
])  # fmt: skip
def test_a_bomb_takes_little_memory(made, said):
    script = "import resource, sys, io\nfrom tf_unravel.data.storage.pickles import read_pickle\n" \
             "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n" \
             "file = io.BytesIO(sys.stdin.buffer.read())\n" \
             "resource.setrlimit(resource.RLIMIT_AS, (used + len(file.getbuffer()) + (64 << 20),) * 2)\n" \
             "try:\n    read_pickle(file, 'bomb')\n" \
             "except ValueError as error:\n    print(error)"
    done = subprocess.run([sys.executable, "-c", script], input=b"\x80\x02" + made, capture_output=True, check=True)
    assert said in done.stdout.decode() and bool(said) == bool(done.stdout)


def test_small_objects_are_bounded(monkeypatch):
    monkeypatch.setattr(pickles, "_MOST_SMALL", 1000)
    assert read(b"]" * 999 + b".") == []
    with pytest.raises(ValueError, match="^some.pickle does not hold its images in one array"):
        read(b"]" * 1000 + b".")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 4), st.data())
def test_a_changed_byte_never_raises_anything_else(protocol, data):
    good = bytearray(pickle.dumps({"labels": [1, 2, 3], "data": np.arange(20, dtype=np.uint8)}, protocol))
    good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = read(bytes(good))
        if isinstance(found, dict) and isinstance(found.get("data"), np.ndarray):
            found["data"].sum()
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
