"""The commit that a run records: the package's own, and never that of a work tree that it merely lies in."""

import json
import re
import shutil
import subprocess

import pytest

from tf_unravel.runs import RunFolder, folder

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(root, *arguments: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *who, *arguments], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def package(root):
    (root / "tf_unravel").mkdir(parents=True)
    (root / "tf_unravel" / "__init__.py").write_text("")
    return root / "tf_unravel"


@pytest.fixture
def checkout(tmp_path):
    """A repository with the package at its root, committed and tagged."""
    found = package(tmp_path / "project")
    git(found.parent, "init", "--quiet")
    git(found.parent, "add", ".")
    git(found.parent, "commit", "--quiet", "--message=first")
    git(found.parent, "tag", "--annotate", "v1", "--message=one")
    return found


def test_the_commit_of_a_checkout_and_whether_it_is_modified(checkout):
    commit = folder.commit_of(checkout)
    assert re.fullmatch(r"[0-9a-f]{7,}", commit) and git(checkout, "rev-parse", "HEAD").startswith(commit)
    (checkout / "new.py").write_text("")  # not under version control: no other program
    assert folder.commit_of(checkout) == commit
    (checkout / "__init__.py").write_text("changed = True")
    assert folder.commit_of(checkout) == f"{commit}-dirty"


def test_a_linked_work_tree_has_its_own_commit(checkout, tmp_path):
    git(checkout, "worktree", "add", "--quiet", str(tmp_path / "linked"))
    linked = tmp_path / "linked" / "tf_unravel"
    (linked / "__init__.py").write_text("changed = True")
    assert folder.commit_of(linked) == f"{folder.commit_of(checkout)}-dirty"


@pytest.mark.parametrize("broken", [False, True])
def test_a_package_installed_inside_of_another_project_has_none(checkout, broken):
    installed = package(checkout.parent / ".venv" / "lib" / "site-packages")
    if broken:  # git would look further up
        (installed.parent / ".git").mkdir()
    assert folder.commit_of(installed) is None


def test_a_hook_of_another_repository_does_not_pass_its_own(checkout, tmp_path, monkeypatch):
    other = package(tmp_path / "other")
    git(other.parent, "init", "--quiet")
    git(other.parent, "add", ".")
    git(other.parent, "commit", "--quiet", "--message=other")
    commit = folder.commit_of(checkout)
    monkeypatch.setenv("GIT_DIR", str(other.parent / ".git"))
    assert folder.commit_of(checkout) == commit


def test_without_git_there_is_none(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert folder.commit_of(checkout) is None


def test_a_run_has_the_commit_that_it_was_begun_with(tmp_path):
    assert "commit" in folder.versions()
    assert RunFolder(tmp_path).commit() is None
    for starts, commit in (([], None), ([{"step": 0}], None), ([{"commit": "a" * 7}, {"commit": "b" * 7}], "a" * 7)):
        (tmp_path / "environment.json").write_text(json.dumps({"starts": starts}))
        assert RunFolder(tmp_path).commit() == commit
