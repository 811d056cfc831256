"""The cache: built once, whole or absent, rebuilt when damaged, safe between processes."""

import logging
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from tf_unravel import files
from tf_unravel.data.storage import cache


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TF_UNRAVEL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def entry(folder):
    return next(path for path in folder.iterdir() if path.is_dir() and path.name.startswith("key"))


def arrays():
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    return {"pixels": pixels, "names": np.array(["a", "bc"]), "none": np.zeros((0, 2))}


def test_builds_once_and_reads_memory_maps():
    calls = []
    for _ in range(2):
        found = cache.cached_arrays("key/1", lambda: calls.append(1) or arrays())
    assert calls == [1]
    for name, array in arrays().items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    assert isinstance(found["pixels"], np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        found["pixels"][0, 0] = 1


def test_other_keys_are_other_entries():
    first = cache.cached_arrays("key/1", lambda: {"a": np.array([1])})
    second = cache.cached_arrays("key/2", lambda: {"a": np.array([2])})
    assert (int(first["a"][0]), int(second["a"][0])) == (1, 2)


def test_default_folder(monkeypatch):
    monkeypatch.delenv("TF_UNRAVEL_CACHE")
    assert cache.cache_folder() == cache.pathlib.Path.home() / ".cache" / "tf_unravel"


def shorten(path):
    (path / "pixels.npy").write_bytes((path / "pixels.npy").read_bytes()[:-1])


def lengthen(path):
    (path / "pixels.npy").write_bytes((path / "pixels.npy").read_bytes() + b"more")


def another_shape(path):
    np.save(path / "pixels.npy", np.arange(12, dtype=np.uint8).reshape(4, 3))


@pytest.mark.parametrize(
    "damage",
    [
        shorten,
        lengthen,
        another_shape,
        lambda path: (path / "pixels.npy").unlink(),
        lambda path: (path / "entry.json").unlink(),
        lambda path: (path / "entry.json").write_text("{"),
        lambda path: (path / "entry.json").write_text("[]"),
    ],
)
def test_a_damaged_entry_is_rebuilt_with_a_warning(folder, caplog, damage):
    cache.cached_arrays("key", arrays)
    damage(entry(folder))
    with caplog.at_level(logging.WARNING):
        found = cache.cached_arrays("key", arrays)
    np.testing.assert_array_equal(found["pixels"], arrays()["pixels"])
    assert "damaged" in caplog.text and entry(folder).name in caplog.text
    caplog.clear()
    cache.cached_arrays("key", lambda: pytest.fail("rebuilt again"))
    assert not caplog.text


def test_a_failed_build_leaves_nothing(folder):
    def fill(create):
        create("pixels", (3, 4), np.uint8)[...] = 7
        raise ValueError("corrupt source")

    with pytest.raises(ValueError, match="corrupt source"):
        cache.cached_fill("key", fill)
    assert not [path for path in folder.iterdir() if path.is_dir()]
    assert len(cache.cached_arrays("key", arrays)) == 3


def test_what_a_killed_writer_left_is_removed(folder):
    script = """
        import os, signal, numpy as np
        from tf_unravel.data import cache
        def fill(create):
            create("pixels", (3, 4), np.uint8)[...] = 7
            os.kill(os.getpid(), signal.SIGKILL)
        cache.cached_fill("key", fill)
    """
    assert run(script).wait() == -9
    assert len([path for path in folder.iterdir() if path.is_dir()]) == 1  # the temporary folder
    found = cache.cached_arrays("key", arrays)
    np.testing.assert_array_equal(found["pixels"], arrays()["pixels"])
    assert [path.name for path in folder.iterdir() if path.is_dir()] == [entry(folder).name]


def run(script):
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path))
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], env=environment)


@pytest.mark.parametrize("locks", ["fcntl", "none"])
def test_several_writers_at_once(folder, tmp_path, locks):
    script = f"""
        import os, time, numpy as np
        from tf_unravel import files
        from tf_unravel.data import cache
        if {locks!r} == "none":
            files.fcntl = None
        def build():
            open({str(tmp_path / "builds")!r}, "a").write("x")
            time.sleep(0.3)
            return {{"a": np.full(100000, 5)}}
        found = cache.cached_arrays("key", build)
        assert found["a"].sum() == 500000
    """
    processes = [run(script) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    if locks == "fcntl":
        assert (tmp_path / "builds").read_text() == "x"
    assert len([path for path in folder.iterdir() if path.is_dir()]) == 1


def test_without_locks_the_first_to_finish_wins(folder, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    first = []

    def build():  # while this one builds, another finishes
        cache.cached_arrays("key", arrays)
        first.append(entry(folder).stat().st_ino)
        return arrays()

    cache.cached_arrays("key", build)
    assert entry(folder).stat().st_ino == first[0]


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TF_UNRAVEL_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ValueError, match="cannot be written.*TF_UNRAVEL_CACHE"):
        cache.cached_arrays("key", arrays)


def test_a_full_disk_is_one_clear_error(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "posix_fallocate", full, raising=False)
    with pytest.raises(ValueError, match="No space left.*free space"):
        cache.cached_arrays("key", arrays)


def test_a_source_that_cannot_be_read_is_no_fault_of_the_cache(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        cache.cached_arrays("key", lambda: {"a": np.load(tmp_path / "missing.npy")})
    assert caught.value.filename == str(tmp_path / "missing.npy")


def test_objects_are_refused():
    with pytest.raises(ValueError, match="plain arrays"):
        cache.cached_arrays("key", lambda: {"a": np.array([object()])})


@pytest.mark.parametrize(
    ("chosen", "shared", "expected"),
    [
        ("/a", "/b", "/a"),
        ("", "/b", "/b/tf_unravel"),
        ("", "b", "/home/me/.cache/tf_unravel"),
        ("", "", "/home/me/.cache/tf_unravel"),
        (None, None, "/home/me/.cache/tf_unravel"),
        ("~/a", None, "/home/me/a"),
    ],
)
def test_the_folder_is_where_the_environment_says(monkeypatch, chosen, shared, expected):
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in (("TF_UNRAVEL_CACHE", chosen), ("XDG_CACHE_HOME", shared)):
        monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name, raising=False)
    assert str(cache.cache_folder()) == expected
