"""The confusion matrix of `classify`: every image is counted once, and what is drawn are the counts."""

import warnings

import numpy as np
import pytest

from tf_unravel.analysis.plot_style import figure_png
from tf_unravel.deployment.classifying.confusion import OTHERS, confusion, confusion_figure


def answered(classes, images=400, unknown=True):
    """(folders, answers, names) that a seed draws: a neighbour is answered now and then, or "unknown"."""
    rng = np.random.default_rng(0)
    names = [f"class {number}" for number in range(classes)]
    folder = rng.integers(1, classes, images)  # the first has no images
    answer = np.where(rng.random(images) < 0.6, folder, (folder + rng.integers(1, 3, images)) % classes)
    told = ["unknown" if unknown and rng.random() < 0.1 else names[number] for number in answer]
    return [names[number] for number in folder], told, names


@pytest.mark.parametrize(("classes", "unknown"), [(2, False), (5, True), (30, True)])
def test_counts_are_those_of_a_loop(classes, unknown):
    folders, answers, names = answered(classes, unknown=unknown)
    found = confusion(folders, answers, names)
    assert found.rows == names[1:] and found.columns == names + ["unknown"] * unknown
    for row, folder in enumerate(found.rows):
        for column, answer in enumerate(found.columns):
            assert found.counts[row, column] == sum(
                pair == (folder, answer) for pair in zip(folders, answers, strict=True))
    assert found.counts.sum() == len(folders)


def test_of_many_classes_those_with_the_most_errors_are_shown():
    folders, answers, names = answered(31, 600)
    found = confusion(folders, answers, names)
    pairs = list(zip(folders, answers, strict=True))
    errors = {name: sum((name in pair) and pair[0] != pair[1] for pair in pairs) for name in names}
    left_out = set(names) - set(found.columns)
    assert len(left_out) == 11 and found.columns[20:] == [OTHERS, "unknown"]
    assert max(errors[name] for name in left_out) <= min(errors[name] for name in found.columns[:20])
    assert found.rows == [name for name in names if name in found.columns[:20] and name in folders]
    for row, name in enumerate(found.rows):
        assert found.counts[row].sum() == folders.count(name)
        assert found.counts[row, 20] == sum(folder == name and answer in left_out for folder, answer in pairs)
    assert "The 20 of 31 classes with the most errors" in confusion_figure(found, "title")._suptitle.get_text()


@pytest.mark.parametrize("classes", [2, 5, 30])
def test_cells_say_counts_and_shares_of_rows_and_frames_the_right_ones(classes):
    folders, answers, names = answered(classes)
    found = confusion(folders, answers, names)
    figure = confusion_figure(found, "title")
    (panel,) = figure.axes
    said = {tuple(text.get_position()): text.get_text() for text in panel.texts}
    assert len(said) == np.count_nonzero(found.counts) and all(text.get_fontsize() >= 8 for text in panel.texts)
    for (column, row), text in said.items():
        count = found.counts[row, column]
        assert text == f"{count}\n{100 * count / found.counts[row].sum():.0f} %"
    framed = {tuple(np.mean([line.get_xdata()[:4], line.get_ydata()[:4]], axis=1)) for line in panel.lines}
    assert framed == {(found.columns.index(name), row) for row, name in enumerate(found.rows)}
    assert [text.get_text() for text in panel.get_xticklabels()] == found.columns
    figure.draw_without_rendering()
    boxes = np.array([text.get_window_extent().extents for text in [*panel.texts, *panel.get_xticklabels()]])
    common = np.minimum(boxes[:, None, 2:], boxes[:, 2:]) - np.maximum(boxes[:, None, :2], boxes[:, :2])
    assert not ((common > 0.5).all(axis=-1) & ~np.eye(len(boxes), dtype=bool)).any()


def test_names_of_any_kind_are_drawn_without_a_warning():
    names = ["動物 $x$ $y$", "a_name_that_is_longer_than_there_is_room_for", "_"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        png = [figure_png(confusion_figure(confusion(names, names[::-1], names), "$a$ $b$")) for _ in range(2)]
    assert png[0].startswith(b"\x89PNG") and png[0] == png[1]
