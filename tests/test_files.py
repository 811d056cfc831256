"""Folders that are whole or absent: replaced, failed, killed in between."""

import errno
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from tf_unravel import files
from tf_unravel.files import NotWritten, locked, write_atomically, write_folder


def writing(text):
    def fill(folder):
        (folder / "deep").mkdir()
        for name in ("a.txt", "deep/b.txt"):
            (folder / name).write_text(text)

    return fill


def content(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_written_and_replaced(tmp_path):
    for text in ("one", "two"):
        write_folder(tmp_path / "new" / "model", writing(text))
        assert content(tmp_path / "new" / "model") == {"a.txt": text, "deep/b.txt": text}
        assert os.listdir(tmp_path / "new") == ["model"]
    old = os.umask(0o077)
    os.umask(old)
    assert (tmp_path / "new" / "model").stat().st_mode & 0o777 == 0o777 & ~old  # others may read it, as any folder


def test_a_failure_leaves_what_was_there(tmp_path):
    write_folder(tmp_path / "model", writing("one"))

    def fail(folder):
        writing("half")(folder)
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        write_folder(tmp_path / "model", fail)
    assert content(tmp_path / "model")["a.txt"] == "one" and os.listdir(tmp_path) == ["model"]


def test_the_old_folder_comes_back_where_the_new_one_cannot_be_named(tmp_path, monkeypatch):
    write_folder(tmp_path / "model", writing("one"))
    rename = os.rename

    def refuse(source, target):
        if str(source).endswith(".tmp"):
            raise OSError("refused")
        rename(source, target)

    monkeypatch.setattr(files.os, "rename", refuse)
    with pytest.raises(OSError, match="refused"):
        write_folder(tmp_path / "model", writing("two"))
    assert content(tmp_path / "model")["a.txt"] == "one" and os.listdir(tmp_path) == ["model"]


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path):
    dead, living, other = (tmp_path / f".model.{c * 32}.tmp" for c in "abc")
    other = tmp_path / ".model.mine.tmp"
    for folder in (dead, living, other):
        folder.mkdir()
        (folder / "half").write_text("")
    with locked(living, folder=True):
        write_folder(tmp_path / "model", writing("one"))
    assert not dead.exists() and living.exists() and other.exists()


def test_what_was_put_aside_by_a_killed_process_is_put_back(tmp_path):
    writing("one")((aside := tmp_path / f".model.{'a' * 32}.old").mkdir() or aside)

    def look(folder):
        assert content(tmp_path / "model")["a.txt"] == "one"
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        write_folder(tmp_path / "model", look)
    assert content(tmp_path / "model")["a.txt"] == "one"


@pytest.mark.parametrize("folder", [False, True])
def test_a_lock_is_held_by_one_and_free_when_its_holder_is_killed(tmp_path, folder):
    path = tmp_path / "lock"
    if folder:
        path.mkdir()
    hold = "import pathlib, sys, time; from tf_unravel.files import locked\nwith locked(pathlib.Path(sys.argv[1]),"
    hold += f"folder={folder}): print('held', flush=True); time.sleep(600)"
    other = subprocess.Popen([sys.executable, "-c", hold, str(path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(BlockingIOError), locked(path, wait=False, folder=folder):
        pass
    other.kill()
    other.communicate()
    with locked(path, wait=False, folder=folder) as got:
        assert got


def test_a_file_system_without_locks_is_told_and_nothing_is_removed(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    (leftover := tmp_path / f".model.{'a' * 32}.tmp").mkdir()
    with locked(tmp_path / "lock") as got:
        assert not got
    write_folder(tmp_path / "model", writing("one"))
    assert leftover.exists() and content(tmp_path / "model")["a.txt"] == "one"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_folder_that_cannot_be_written_is_one_line_that_names_it_alone(tmp_path):
    write_folder(tmp_path / "model", writing("one"))

    def fill(folder):
        (folder / "a.txt").write_text("two")
        write_atomically(folder / "card", lambda file: open("/dev/full", "wb", buffering=0).write(b"x"))

    with pytest.raises(NotWritten) as caught:
        write_folder(tmp_path / "model", fill)
    assert re.fullmatch(rf"{tmp_path}/model cannot be written \(No space left on device\): make room [^\n]*",
                        str(caught.value))
    assert content(tmp_path / "model")["a.txt"] == "one" and os.listdir(tmp_path) == ["model"]


ENDLESS = """
import itertools, pathlib, sys
from tf_unravel.files import write_folder
def fill(folder):
    for name in "abc":
        (folder / name).write_text(str(number))
for number in itertools.count():
    write_folder(pathlib.Path(sys.argv[1]), fill)
"""


def test_killed_at_random_moments_it_is_never_half_written(tmp_path):
    """40 kills: every time the folder holds one whole version, or none beside a whole one put aside."""
    rng, target = random.Random(0), tmp_path / "model"
    for _ in range(40):
        child = subprocess.Popen([sys.executable, "-c", ENDLESS, str(target)])
        while not target.exists() and child.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 0.03))
        child.send_signal(signal.SIGKILL)
        child.wait()
        found = [target, *tmp_path.glob(".model.*.old")]
        versions = [set(content(folder).values()) for folder in found if folder.exists()]
        assert versions and all(len(version) == 1 for version in versions[:1])
        assert len(content(next(folder for folder in found if folder.exists()))) == 3
    write_folder(target, writing("last"))
    assert os.listdir(tmp_path) == ["model"]


ENDLESS_FILE = """
import itertools, pathlib, sys
from tf_unravel.files import write_atomically
def write(file):
    for _ in range(50):
        file.write(b"%06d" % number * 500)
for number in itertools.count():
    write_atomically(pathlib.Path(sys.argv[1]), write)
"""


def test_a_file_that_is_replaced_by_a_process_that_is_killed_is_one_whole_version(tmp_path):
    """30 kills."""
    rng, target = random.Random(0), tmp_path / "file"
    for _ in range(30):
        child = subprocess.Popen([sys.executable, "-c", ENDLESS_FILE, str(target)])
        while not target.exists() and child.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 0.03))
        child.send_signal(signal.SIGKILL)
        child.wait()
        found = target.read_bytes()
        assert len(found) == 50 * 500 * 6 and found == found[:6] * (50 * 500)
        target.unlink()
