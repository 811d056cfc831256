"""Checkpoints: any damage is noticed, a full disk costs nothing that was there, readers never see half a file."""

import io
import json
import logging
import threading

import keras
import numpy as np
import pytest

from tests.faults import largest_file, open_on_full_disk
from tf_unravel import files
from tf_unravel.files import NotWritten, write_atomically
from tf_unravel.runs.checkpoints import Checkpoints

FACTS = {"step": 7, "note": "é"}


def network(value: float = 0.0) -> keras.Model:
    """A network all of whose weights are `value`."""
    made = keras.Sequential([keras.layers.Input((30,)), keras.layers.Dense(70), keras.layers.Dense(3)])
    for variable in made.variables:
        variable.assign(np.full(variable.shape, value))
    return made


def values(learner: keras.Model) -> set[float]:
    return {float(value) for variable in learner.variables for value in np.unique(variable.numpy())}


@pytest.fixture
def saved(tmp_path):
    """(the checkpoints, the file of step 7, a learner to restore into)."""
    there = Checkpoints(tmp_path / "checkpoints")
    return there, there.save(network(1.0), FACTS), network()


def without_checksum(path) -> None:
    """Writes a checkpoint as versions before the checksum did."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(path, **arrays)


def restored(there: Checkpoints, path, learner: keras.Model) -> bool:
    """Whether the file gives back what was saved; False where it is refused in one line."""
    try:
        assert there.restore(path, learner) == FACTS and values(learner) == {1.0}
    except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return False
    return True


def changed(whole: bytes, stride: int):
    """The file with one byte changed: every `stride`-th one of the weights, every one of headers and directory."""
    for place in {*range(200), *range(200, len(whole), stride), *range(len(whole) - 400, len(whole))}:
        for mask in (0xFF, 0x06):  # 0x06 makes <f2 of <f4, which is half the bytes and as many values
            yield whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :]


def test_a_changed_byte_anywhere_is_noticed(saved):
    there, path, learner = saved
    for content in changed(path.read_bytes(), 97):
        path.write_bytes(content)
        assert not restored(there, path, learner)
    assert values(learner) != {1.0}  # nothing of what was refused was taken over


def test_a_missing_or_additional_end_is_noticed(saved):
    there, path, learner = saved
    whole = path.read_bytes()
    for length in {*range(0, len(whole), 151), *range(len(whole) - 200, len(whole))}:
        path.write_bytes(whole[:length])
        assert not restored(there, path, learner)
    path.write_bytes(whole + b"\0")
    assert not restored(there, path, learner)


def test_checkpoints_from_before_the_checksum_are_read(saved):
    there, path, learner = saved
    without_checksum(path)
    assert restored(there, path, learner)
    for content in changed(path.read_bytes(), 301):  # some bytes of a zip mean nothing, the time for one
        path.write_bytes(content)
        restored(there, path, learner)  # and what it gives back it gives back right


def test_numpy_reads_a_checkpoint(saved):
    with np.load(saved[1], allow_pickle=False) as file:
        assert json.loads(str(file["facts"])) == FACTS
        np.testing.assert_array_equal(file["0000"], np.ones((30, 70)))


def test_a_damaged_one_is_passed_over_with_a_warning(saved, caplog):
    there, path, learner = saved
    newer = there.save(network(2.0), {"step": 8})
    content = bytearray(newer.read_bytes())
    content[3000] ^= 1
    newer.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert there.restore_latest(learner) == FACTS
    assert values(learner) == {1.0}
    assert f"{newer} cannot be used: it is damaged (its checksum is another one)" in caplog.text
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="none of the 2 checkpoints in .* can be read"):
        there.restore_latest(learner)


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("room", [0, 500, 9000, 11000])  # within the first array, a later one, the directory
def test_a_full_disk_names_the_file_and_leaves_the_one_before(saved, monkeypatch, capfd, room):
    there, path, learner = saved
    assert 10000 < path.stat().st_size < 12000
    monkeypatch.setattr(files, "open", open_on_full_disk("step-", room), raising=False)
    with pytest.raises(NotWritten, match=r"step-00000008.npz cannot be written \(No space left on device\): make room"):
        there.save(network(2.0), {"step": 8})
    assert [file.name for file in there.folder.iterdir()] == [path.name]
    monkeypatch.undo()
    assert there.restore_latest(learner) == FACTS and values(learner) == {1.0}
    there.save(network(2.0), {"step": 8})
    assert there.restore_latest(learner) == {"step": 8}
    assert capfd.readouterr().err == ""


def test_a_write_that_the_system_cuts_short(saved, capfd):
    there, path, learner = saved
    for limit in (100, 10000):
        with largest_file(limit), pytest.raises(NotWritten, match="best.npz cannot be written .File too large"):
            there.save_best(network(2.0), {"step": 8})
    assert [file.name for file in there.folder.iterdir()] == [path.name]
    assert capfd.readouterr().err == ""


def test_what_was_there_stays_where_a_text_cannot_be_replaced(tmp_path, monkeypatch):
    write_atomically(tmp_path / "results.json", lambda file: file.write(b"before"))
    monkeypatch.setattr(files, "open", open_on_full_disk("results", 3), raising=False)
    with pytest.raises(NotWritten, match="results.json cannot be written"):
        write_atomically(tmp_path / "results.json", lambda file: file.write(b"after"))
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("results.json", b"before")]


def test_who_reads_while_another_writes_sees_whole_checkpoints(tmp_path):
    there, stop, written = Checkpoints(tmp_path / "checkpoints"), threading.Event(), []
    there.save(network(0.0), {"step": 0})

    def write() -> None:
        learner = network()
        while not stop.is_set():
            step = len(written) + 1
            for variable in learner.variables:
                variable.assign(np.full(variable.shape, step))
            there.save(learner, {"step": step})
            there.save_best(learner, {"step": step})
            written.append(step)

    thread, learner, seen = threading.Thread(target=write), network(), []
    thread.start()
    try:
        while len(written) < 100:
            seen.append(there.restore_latest(learner)["step"])
            assert values(learner) == {float(seen[-1])}
            if there.best.exists():
                assert values(learner) and there.restore(there.best, learner)["step"] in values(learner)
    finally:
        stop.set()
        thread.join()
    assert len(set(seen)) > 3


def test_one_that_is_dropped_before_it_is_opened_is_no_damage(saved, monkeypatch, caplog):
    """The trainer drops old checkpoints; a reader that listed them looks again."""
    there, _, learner = saved
    trainer, original = Checkpoints(there.folder, keep=1), there.newest_first

    def list_and_lose():
        found = original()
        if len(found) == 1 and found[0].name == "step-00000007.npz":
            trainer.save(network(3.0), {"step": 9})
        return found

    monkeypatch.setattr(there, "newest_first", list_and_lose)
    assert there.restore_latest(learner) == {"step": 9} and not caplog.text


def test_a_checkpoint_holds_no_objects(saved):
    there, path, learner = saved
    buffer = io.BytesIO()
    np.savez(buffer, facts=np.array({"step": 1}, dtype=object))
    path.write_bytes(buffer.getvalue())
    assert not restored(there, path, learner)
