"""Every parser of user data on damaged files and on anything: its own refusal in one line, or nothing."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.fuzz.corpus import NAMES, inputs
from tests.fuzz.targets import TARGETS

each_target = pytest.mark.parametrize("name", TARGETS)
few = settings(max_examples=150, deadline=None)

edits = st.lists(
    st.tuples(st.sampled_from(["change", "insert", "drop", "repeat", "cut"]), st.floats(0, 1), st.binary(max_size=8)),
    min_size=1, max_size=5,
)  # fmt: skip


def edited(data: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    """A file after some edits, each at a place between its beginning (0) and its end (1)."""
    for kind, place, new in changes:
        at = int(place * len(data))
        data = {
            "change": data[:at] + new + data[at + len(new) :],
            "insert": data[:at] + new + data[at:],
            "drop": data[:at] + data[at + len(new) :],
            "repeat": data[:at] + data[max(0, at - 16 * len(new)) :],
            "cut": data[:at] if new.startswith(b"\xff") else data,
        }[kind]
    return data


@each_target
def test_the_kept_inputs(name):
    assert set(NAMES) == set(TARGETS)
    assert inputs(name)
    for data in inputs(name):
        TARGETS[name](data)


@each_target
@few
@given(data=st.data())
def test_damaged_files(name, data):
    TARGETS[name](edited(data.draw(st.sampled_from(inputs(name))), data.draw(edits)))


@each_target
@few
@given(data=st.one_of(st.binary(max_size=200), st.text(max_size=60).map(str.encode)))
@example(data=b"")
@example(data=b"(" * 3000)
@example(data=b"a = (")
@example(data=b'"' + b"x" * 200000)
@example(data=b"filename,label\na\0,b\n")
def test_anything(name, data):
    TARGETS[name](data)
