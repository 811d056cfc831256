"""The guides' Python runs as printed, in order; what is changed: trainings of two steps, fewer glyphs."""

import numpy as np
import pytest
from PIL import Image

import tf_unravel as tu
from tests.docs.pages import blocks, run_python
from tests.learners.problems import small_network


@pytest.fixture(autouse=True)
def shortened(tmp_path, monkeypatch):
    """A folder to work in; two steps, whatever a training is asked for, and 20 images per class."""
    load, fit = tu.data.load, tu.learners.Learner.fit

    def fewer(name, split):
        return load(name, split=split, images_per_class=20)

    def shorter(self, batches, epochs, steps_per_epoch):
        return fit(self, batches, epochs=min(epochs, 1), steps_per_epoch=min(steps_per_epoch, 2), verbose=0)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tu.data, "load", fewer)
    monkeypatch.setattr(tu.learners.Learner, "fit", shorter)


@pytest.mark.parametrize(("page", "printed"), [("python", ("2,000 tasks", "r_fc")), ("meta_learning", (" 200 tasks",))])
def test_the_python_runs(page, printed, capsys):
    ((language, text),) = blocks(f"docs/guides/{page}.md")
    assert language == "python"
    run_python(text, {})
    out = capsys.readouterr().out
    assert all(part in out for part in printed)


def test_an_exported_model_answers():
    """The first block of the page; tests/deployment/test_server.py runs the others, which ask a server."""
    tu.export(small_network(), tu.heads.Ridge(), "model")
    rng = np.random.default_rng(0)
    names: dict[str, np.ndarray] = {
        "images": rng.integers(0, 256, (3, 20, 24, 3), np.uint8),
        "labelled": rng.integers(0, 256, (4, 16, 16, 3), np.uint8),
        "labels": np.array([0, 1, 1, 0], np.int32),
    }
    for number, name in enumerate(("photo.jpg", "scan.png")):
        Image.fromarray(names["images"][number]).resize((50 + number, 40)).save(name)
    (_, text), (_, command), (_, client) = blocks("docs/guides/export_and_serving.md")
    assert "http://" in command and "http://" in client
    run_python(text, names)
