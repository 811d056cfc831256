"""Figures of `evaluate` and `measure`: every dot and interval is that of a row, whatever the runs are called."""

import dataclasses
import io
import warnings

import numpy as np
import pytest
from PIL import Image

from tf_unravel import evaluation
from tf_unravel.analysis.plot_style import figure_png, names_shown, new_figure
from tf_unravel.commands import plots

LONG = "runs/november/conv4_with_feature_clustering"
NAMES = [f"{LONG}/seed0", f"{LONG}/seed1", "実行 $a$ $b$", *(f"run{number}" for number in range(9))]
HEADS = ["prototypes", "ridge", "svm", "linear", "fine_tune", "own", "cosine", "another"]


def evaluated(runs=3, heads=4, shots=(1, 5)):
    """Rows of evaluation.json, of accuracies that a seed draws."""
    rng = np.random.default_rng(0)
    rows = [{"run": run, "head": head, "shots": count, "ways": 5, "mean": rng.uniform(0.4, 0.8),
             "ci95": rng.uniform(0.001, 0.01), "num_tasks": 2000, "split": "toy/test"}
            for run in NAMES[:runs] for head in HEADS[:heads] for count in shots]
    for row in rows:
        pairs = rng.permutation(20)[:10]
        row["mixed_up"] = [{"classes": [f"class {pair}", f"a long name of a class {pair % 7}"], "rate": rate}
                           for pair, rate in zip(pairs, np.sort(rng.uniform(0.05, 0.4, 10))[::-1], strict=True)]
        probabilities, labels = rng.dirichlet(np.ones(5), 300), rng.integers(5, size=300)
        row["calibration"] = {"bins": 15} | {
            when: dataclasses.asdict(evaluation.reliability(values, labels))
            for when, values in (("before", probabilities), ("after", (probabilities + 0.2) / 2))}
    return rows


def measured(runs=3):
    """Rows of measurement.json."""
    return [{"run": run, "split": "toy/test", "num_pairs": 100, "r_fc": 2 + 0.1 * number, "r_fc_error": 0.02,
             "r_hv": 1 + 0.1 * number, "r_hv_error": 0.01} for number, run in enumerate(NAMES[:runs])]


def drawn(figure):
    """The figure's pixels; a warning on the way is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        png = figure_png(figure)
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("L"))


def intervals(panel):
    """(value, half the width of its interval, marker, colour) of each dot, from top to bottom."""
    found = []
    for container in panel.containers:
        dot, _, (bar,) = container.lines
        (segment,) = bar.get_segments()
        found.append((dot.get_ydata()[0], dot.get_xdata()[0], np.ptp(segment[:, 0]) / 2, dot.get_marker(),
                      dot.get_color()))
    return [values for _, *values in sorted(found)]


@pytest.mark.parametrize(("runs", "heads", "shots"),
                         [(1, 1, (1,)), (3, 4, (1, 5)), (12, 2, (1, 5)), (1, 7, (5, 1, 20))])
def test_each_row_is_a_dot_with_its_interval(runs, heads, shots):
    rows = evaluated(runs, heads, shots)
    figure = plots.accuracy_figure(rows)
    assert [panel.get_title() for panel in figure.axes] == [f"5-way {count}-shot" for count in shots]
    for panel, count in zip(figure.axes, shots, strict=True):
        mine = [row for row in rows if row["shots"] == count]
        found = intervals(panel)
        np.testing.assert_allclose([values[:2] for values in found],
                                   [(100 * row["mean"], 100 * row["ci95"]) for row in mine])
        styles = {row["head"]: tuple(values[2:]) for row, values in zip(mine, found, strict=True)}
        assert len({marker for marker, _ in styles.values()}) == len({colour for _, colour in styles.values()}) == heads
        assert [values[2:] for values in found] == [list(styles[row["head"]]) for row in mine]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == HEADS[:heads]
    drawn(figure)


def texts(figure):
    """All texts that are seen."""
    found = [text for text in (figure._supxlabel, figure._suptitle) if text]
    legends = [*figure.legends]
    for panel in figure.axes:
        if panel.axison:
            ticks = [tick.label1 for axis in (panel.xaxis, panel.yaxis) for tick in axis._update_ticks()]  # in view
            found += [panel.title, panel.xaxis.label, panel.yaxis.label, *ticks, *panel.texts]
            legends += [panel.get_legend()] if panel.get_legend() else []
    for legend in legends:
        found += [legend.get_title(), *legend.get_texts()]
    return [text for text in found if text.get_visible() and text.get_text()]


@pytest.mark.parametrize(("runs", "heads"), [(1, 1), (3, 4), (12, 2), (1, 7)])
@pytest.mark.filterwarnings("ignore:Glyph .* missing from font")
def test_nothing_overlaps_and_nothing_is_small(runs, heads):
    rows = evaluated(runs, heads)
    for figure in (plots.accuracy_figure(rows), plots.reliability_figure(rows), plots.mixed_up_figure(rows),
                   plots.clustering_figure(measured(runs))):
        figure.draw_without_rendering()
        seen = texts(figure)
        assert min(text.get_fontsize() for text in seen) >= 8
        corners = np.array([text.get_window_extent().extents for text in seen])
        assert corners.min() >= 0 and (corners[:, 2:] <= figure.bbox.extents[2:]).all()
        common = (np.minimum(corners[:, None, 2:], corners[:, 2:]) - np.maximum(corners[:, None, :2], corners[:, :2]))
        overlap = np.argwhere((common > 0.5).all(axis=-1) & ~np.eye(len(corners), dtype=bool))
        assert not len(overlap), [seen[i].get_text() for i in overlap[0]]


def test_more_heads_than_colours_are_told_apart():
    figure = plots.accuracy_figure(evaluated(1, 8))
    faces = {(handle.get_marker(), handle.get_markerfacecolor()) for handle in figure.legends[0].legend_handles}
    assert len(faces) == 8


def test_an_interval_alone_does_not_look_wide():
    low, high = plots.accuracy_figure(evaluated(1, 1, (1,))).axes[0].get_xlim()
    assert high - low == pytest.approx(5)


def test_models_of_different_heads_have_a_line_each():
    rows = [row for row in evaluated(3, 3, (1,)) if NAMES.index(row["run"]) == HEADS.index(row["head"])]
    panel = plots.accuracy_figure(rows).axes[0]
    heights = [container.lines[0].get_ydata()[0] for container in panel.containers]
    np.testing.assert_allclose(heights, panel.get_yticks())


def test_reliability_curves_are_those_of_the_rows():
    rows = evaluated(2, 3)
    figure = plots.reliability_figure(rows)
    panels = {panel.get_legend().get_title().get_text(): panel for panel in figure.axes if panel.axison}
    assert len(panels) == len(rows)
    shown = names_shown((row["run"] for row in rows), 26)
    for row in rows:
        panel = panels[f"{shown[row['run']]}\n{row['head']}, 5-way {row['shots']}-shot"]
        found = row["calibration"]
        said = [text.get_text() for text in panel.get_legend().get_texts()]
        assert said == [f"{when}: ECE {100 * found[when]['error']:.1f} %" for when in ("before", "after")]
        for points, when in zip(panel.collections, ("after", "before"), strict=True):
            counts = np.array(found[when]["counts"])
            expected = 100 * np.array([found[when]["confidences"], found[when]["accuracies"]]).T[counts > 0]
            np.testing.assert_allclose(points.get_offsets(), expected)
            assert np.unique(points.get_sizes()).size == np.unique(counts[counts > 0]).size
        for bars, when in zip(panel.patches, ("after", "before"), strict=True):
            np.testing.assert_allclose(bars.get_data().values, 100 * np.array(found[when]["counts"]) / 300)
        lines = [line for line in panel.lines if len(line.get_xdata()) and line.get_linestyle() != ":"]
        assert [line.get_linestyle() for line in lines] == ["-", "--"]
        for line, when in zip(lines, ("after", "before"), strict=True):
            assert len(line.get_xdata()) == np.sum(np.array(found[when]["counts"]) >= 0.005 * 300)
    for row in rows:
        del row["calibration"]
    assert plots.reliability_figure(rows) is None


def test_the_pairs_mixed_up_most_are_those_of_the_rows():
    rows = evaluated(2, 3)
    figure = plots.mixed_up_figure(rows)
    assert len(figure.axes) == 4
    for number, panel in enumerate(figure.axes):
        mine = [row for row in rows if row["run"] == NAMES[number // 2] and row["shots"] == (1, 5)[number % 2]]
        assert panel.get_title().endswith(f"5-way {(1, 5)[number % 2]}-shot")
        means = {}
        for row in mine:
            for pair in row["mixed_up"]:
                means[tuple(pair["classes"])] = means.get(tuple(pair["classes"]), 0) + pair["rate"]
        first = sorted(means, key=means.__getitem__, reverse=True)[:10]
        expected = [(100 * pair["rate"], first.index(tuple(pair["classes"])), HEADS.index(row["head"]))
                    for row in mine for pair in row["mixed_up"] if tuple(pair["classes"]) in first]
        found = [(x, y, head) for head, line in enumerate(panel.lines) for x, y in zip(*line.get_data(), strict=True)]
        np.testing.assert_allclose(sorted(found), sorted(expected))
        assert [text.get_text().split(" – ")[0] for text in panel.get_yticklabels()] == [pair[0] for pair in first]
    assert plots.mixed_up_figure([{**row, "mixed_up": []} for row in rows]) is None


def test_clustering_is_drawn_with_95_percent():
    figure = plots.clustering_figure(measured(3))
    for panel, name in zip(figure.axes, ("r_fc", "r_hv"), strict=True):
        assert panel.get_title() == name
        np.testing.assert_allclose([values[:2] for values in intervals(panel)],
                                   [(row[name], 1.96 * row[f"{name}_error"]) for row in measured(3)])
    assert not figure.legends
    collapsed = [{**row, "r_fc": float("nan"), "r_fc_error": float("nan")} for row in measured(2)]
    drawn(plots.clustering_figure(collapsed))


def test_the_same_rows_give_the_same_pixels():
    for draw, rows in ((plots.accuracy_figure, evaluated()), (plots.reliability_figure, evaluated(1, 2)),
                       (plots.mixed_up_figure, evaluated()), (plots.clustering_figure, measured())):
        np.testing.assert_array_equal(drawn(draw(rows)), drawn(draw(rows)))


def test_names_are_shortened_told_apart_and_no_mathematics():
    shown = names_shown(NAMES[:3], 12)
    assert list(shown.values()) == ["…ering/seed0", "…ering/seed1", r"実行 \$a\$ \$b\$"]
    assert list(names_shown(["x/one/run", "y/one/run", "z"], 6).values()) == ["…e/run (1)", "…e/run (2)", "z"]
    figure = new_figure(3, 2)
    panel = figure.subplots()
    panel.set_title(shown[NAMES[2]])
    drawn(figure)
    assert panel.title._preprocess_math(panel.title.get_text()) == (NAMES[2], False)
