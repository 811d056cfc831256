import gin
import pytest

from tests.docs.pages import ROOT


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with the gin files of a clone, on Python's path; gin's configuration is empty."""
    gin.clear_config()
    (tmp_path / "gin").symlink_to(ROOT / "gin")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path
