"""The tutorials' blocks run as printed, in order, in a folder prepared as the page says.

What is changed: trainings are cut to one epoch, of fewer glyphs; the images are generated here; and a block below
`<!-- test: why -->` is skipped.
"""

import re
import sys

import keras
import numpy as np

import tf_unravel as tu
from tests.docs.pages import EPOCH, FEW, blocks, draw, run_python, run_shell


def test_own_head(place, capsys, monkeypatch):
    monkeypatch.setattr(tu.heads, "by_name", dict(tu.heads.by_name))  # the page adds one
    names: dict[str, object] = {}
    for language, text in blocks("docs/tutorials/own_head.md"):
        if language == "python":
            run_python(text, names)
        else:
            run_shell(text, EPOCH, FEW)
    monkeypatch.delitem(sys.modules, "cosine")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["cosine", "prototypes", "ridge"]
    assert np.asarray(names["answer"]["probabilities"]).shape == (2, 2)
    table = [line.split()[:2] for line in lines if line.startswith("classical")]
    assert table == [["classical", head] for head in ("cosine", "prototypes", "ridge")]
    assert any("model-cosine: cosine, scale 20" in line for line in lines)


def test_own_images(place, capsys):
    """20 classes, as in the page's trial; the last five, which it sets aside, are easy to tell apart."""
    for number, colour in enumerate(np.random.default_rng(1).integers(30, 226, (15, 3))):
        draw(place / "images" / f"class {number:02}", colour, range(12))
    new = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (220, 220, 220), (20, 20, 20)]
    for number, colour in enumerate(new):
        draw(place / "images" / f"new {number}", np.array(colour), range(8))
    for language, text in blocks("docs/tutorials/own_images.md"):
        assert language == "bash"
        run_shell(text, EPOCH)
    assert sorted(path.name for path in (place / "support").iterdir()) == [f"new {number}" for number in range(5)]
    assert len(list(place.glob("support/*/*"))) == 25 and len(list(place.glob("images/*"))) == 15
    printed = capsys.readouterr().out
    assert "3-way 5-shot" in printed
    correct = re.search(r"(\d+) of 15 (?:pictures|images) in folders named after a class", printed)
    assert correct and int(correct[1]) >= 12  # chance is 3
    assert (place / "classification" / "contact_sheet.png").stat().st_size > 5000


def test_table3(place, capsys):
    for language, text in blocks("docs/tutorials/table3.md"):
        assert language == "bash"
        run_shell(text, EPOCH, FEW)
    printed = capsys.readouterr().out
    assert printed.count("  svm  ") == 2 and "500 tasks" in printed and "variance ratio" in printed


def test_pretrained(place, capsys):
    """The network of the page's file is a small one with random weights."""
    keras.utils.set_random_seed(0)
    layers = [keras.Input((32, 32, 3)), keras.layers.Conv2D(8, 5, strides=4), keras.layers.ReLU()]
    keras.Sequential(layers).save(place / "network.keras")
    for number, colour in enumerate(np.random.default_rng(1).integers(30, 226, (10, 3))):
        draw(place / "images" / f"class {number:02}", colour, range(12))
    for name, colour in {"blue": (30, 30, 200), "red": (200, 30, 30)}.items():
        draw(place / "support" / name, np.array(colour), range(5))
        draw(place / "queries" / name, np.array(colour), range(5, 8))
    for language, text in blocks("docs/tutorials/pretrained.md"):
        assert language == "bash"
        run_shell(text, EPOCH)
    printed = capsys.readouterr().out
    assert "32x32, 8 features; ridge, l2 50" in printed
    assert "6 of 6 images in folders named after a class" in printed
    assert "5-way 5-shot" in printed and "variance ratio" in printed and "initial (untrained)" in printed
