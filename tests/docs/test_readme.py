"""The README's Python runs as it stands, in order; what is changed: trainings of two steps, fewer glyphs."""

import numpy as np

import tf_unravel as tu
from tests.docs.pages import blocks, run_python
from tests.learners.problems import small_network


def shortened(monkeypatch):
    """Two steps, whatever a training is asked for, and 20 images a class."""
    load, fit = tu.data.load, tu.learners.Learner.fit

    def fewer(name, split):
        return load(name, split=split, images_per_class=20)

    def shorter(self, batches, epochs, steps_per_epoch):
        return fit(self, batches, epochs=min(epochs, 1), steps_per_epoch=min(steps_per_epoch, 2), verbose=0)

    monkeypatch.setattr(tu.data, "load", fewer)
    monkeypatch.setattr(tu.learners.Learner, "fit", shorter)


def test_the_blocks_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shortened(monkeypatch)
    rng = np.random.default_rng(0)
    tu.export(small_network(), tu.heads.Ridge(), "model")  # what the first block loads, and asks about these
    names: dict[str, object] = {
        "images": rng.integers(0, 256, (3, 20, 24, 3), np.uint8),
        "labelled": rng.integers(0, 256, (4, 16, 16, 3), np.uint8),
        "labels": np.array([0, 1, 1, 0], np.int32),
    }
    languages, texts = zip(*blocks("README.md"), strict=True)
    assert languages == ("python",) * 3
    for text in texts:
        run_python(text, names)
    printed = capsys.readouterr().out
    assert "2,000 tasks" in printed and " 200 tasks" in printed and "r_fc" in printed
