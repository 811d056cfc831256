"""Digests of files: of what is in them, remembered while they are untouched."""

import os

import pytest

from tf_unravel.data.storage import digests


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setenv("TF_UNRAVEL_CACHE", str(tmp_path / "cache"))
    for name in ("one", "two"):
        (tmp_path / "files" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "files" / name).write_text(name)
    return tmp_path / "files"


@pytest.fixture
def reads(monkeypatch):
    """How often files were read; files just written count as old."""
    seen = []
    original = digests._digest
    monkeypatch.setattr(digests, "_digest", lambda *given: seen.append(1) or original(*given))
    monkeypatch.setattr(digests, "_RECENT_SECONDS", -60.0)
    return seen


def digest(files):
    return digests.digest_of_files(files, ["one", "two"])


def test_untouched_files_are_read_once(files, reads):
    assert digest(files) == digest(files)
    assert len(reads) == 1


def test_a_change_that_hides_its_time_is_seen(files, reads):
    before, times = digest(files), os.stat(files / "one")
    (files / "one").write_text("onE")
    os.utime(files / "one", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert digest(files) != before


def test_touching_changes_nothing(files, reads):
    before = digest(files)
    os.utime(files / "one", (1, 1))
    assert digest(files) == before and len(reads) == 2


def test_files_just_written_are_always_read(files, reads, monkeypatch):
    monkeypatch.setattr(digests, "_RECENT_SECONDS", 60.0)
    digest(files)
    digest(files)
    assert len(reads) == 2


def test_names_order_and_missing_files_count(files):
    (files / "empty").write_text("")
    lists = [["one", "two"], ["two", "one"], ["one"], ["one", "missing"], ["one", "empty"]]
    assert len({digests.digest_of_files(files, names) for names in lists}) == 5


def test_check_hash(files):
    digests.check_hash(files / "one", "md5", "f97c5d29941bfb1b2fdab0874906ab82")  # md5 of b"one"
    with pytest.raises(ValueError, match="two is not the published file.*md5 b8a9f715dbb64fd5"):
        digests.check_hash(files / "two", "md5", "f97c5d29941bfb1b2fdab0874906ab82")
