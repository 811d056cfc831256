"""The tutorials do what they say: their blocks are run as they stand, in order, in a folder made as the page asks.

What is changed: trainings are cut to an epoch, of fewer glyphs, and a block below `<!-- test: why -->` is left out.
"""

import pathlib
import re
import shlex

import numpy as np
import pytest
from PIL import Image

from tf_unravel import cli

ROOT = pathlib.Path(__file__).parents[2]
PAGES = ROOT / "docs" / "tutorials"
_BLOCK = re.compile(r"(<!-- test: [^>]*-->\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of the blocks that the test runs."""
    found = _BLOCK.findall((PAGES / page).read_text(encoding="utf-8"))
    return [(language, text) for left_out, language, text in found if not left_out]


def run_shell(text: str, *shorter: str) -> None:
    """Runs lines of `tf-unravel ...` in this process: another would import TensorFlow each time."""
    changes = [f"--gin_bindings={line}" for line in ("run.epochs = 1", *shorter)]
    for line in text.replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(line)
        assert program == "tf-unravel"
        assert cli.main([*arguments, *(changes if arguments[0] == "train" else ())]) == 0, line


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to work in, with the gin files that a clone has."""
    (tmp_path / "gin").symlink_to(ROOT / "gin")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def draw(folder: pathlib.Path, colour: np.ndarray, pictures: range) -> None:
    """Pictures of a colour with grain, each from its number."""
    folder.mkdir(parents=True)
    for number in pictures:
        grain = np.random.default_rng(number).normal(0, 20, (24, 24, 3))
        Image.fromarray(np.clip(colour + grain, 0, 255).astype(np.uint8)).save(folder / f"{number}.png")


def test_own_pictures(place, capsys):
    colours = np.random.default_rng(1).integers(30, 226, (18, 3))
    for number, colour in enumerate(colours[:15]):
        draw(place / "photographs" / f"class{number}", colour, range(12))
    for name, colour in zip(("ant", "bat", "cow"), ((200, 30, 30), (30, 200, 30), (30, 30, 200)), strict=True):
        draw(place / "photos" / name, np.array(colour), range(2))
        draw(place / "more_photos" / name, np.array(colour), range(10, 14))
    for language, text in blocks("own_pictures.md"):
        assert language == "bash"
        run_shell(text)
    printed = capsys.readouterr().out
    assert "3-way 5-shot" in printed and "12 of 12 pictures in folders named after a class" in printed
    assert (place / "classification" / "contact_sheet.png").stat().st_size > 5000


def test_own_head(place, capsys):
    names: dict[str, object] = {}
    found = blocks("own_head.md")
    assert [language for language, _ in found] == ["python"] * 4
    for _, text in found:
        exec(compile(text, "own_head.md", "exec"), names)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["cosine", "prototypes", "ridge"]
    assert np.asarray(names["answer"]["probabilities"]).shape == (2, 2)


def test_table3(place, capsys):
    for language, text in blocks("table3.md"):
        assert language == "bash"
        run_shell(text, "load.images_per_class = 20")
    printed = capsys.readouterr().out
    assert printed.count("  svm  ") == 2 and "500 tasks" in printed and "variance ratio" in printed
