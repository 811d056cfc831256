"""The tables of CIFAR-FS in the README and in docs/results/ are what the archive of measurements gives."""

import pytest

from tests.docs.pages import ROOT
from tf_unravel.reproduction.exhibits.summary import summary
from tf_unravel.reproduction.jobs import archive, scales
from tf_unravel.reproduction.jobs.workspace import Workspace
from tf_unravel.reproduction.report.document import markdown


@pytest.fixture(scope="module")
def on_one_screen(tmp_path_factory) -> tuple[str, str]:
    """The table and the note below it, as Markdown."""
    folder = tmp_path_factory.mktemp("runs")
    archive.unpack(ROOT / "docs" / "results" / "cifar_fs_runs.tar.xz", folder)
    scale = scales.load("cifar_fs")
    grid, note = summary(scale, scale.seeds).blocks(Workspace(folder, scale))
    return markdown([grid]), markdown([note])


def test_the_readme(on_one_screen):
    assert on_one_screen[0] in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_page(on_one_screen):
    page = (ROOT / "docs" / "results" / "cifar_fs.md").read_text(encoding="utf-8")
    assert all(text in page for text in on_one_screen)
