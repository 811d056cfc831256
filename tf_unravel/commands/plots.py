"""What `evaluate` and `measure` draw, from the rows of their tables: dots with intervals, reliability curves, pairs of
classes that are mixed up.

A series (a head) has a colour and a marker of its own, before and after calibration also a line style, so that a
figure can be read in black and white. All text is of 8 points or more; a figure grows with its rows.
"""

import itertools
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tf_unravel.analysis.plot_style import COLOURS, LINES, MARKERS, names_shown, new_figure, plain, short

Row = Mapping[str, Any]
"""A row of evaluation.json or measurement.json."""

_LINE, _AROUND = 0.19, 1.5  # inches: a dot's line; what stands above and below all of them
_ACROSS = 6  # panels side by side
_SMALL = 8.5  # points
_FEW = 0.005  # of the queries: no line goes to a bin with fewer
_PAIRS = 10  # of classes, in a panel
_BARS = ("Bars: share of queries in each bin, grey after calibration, dashed before. Points grow with it; lines join "
         f"bins with {100 * _FEW:g} % or more. Dotted: accuracy = confidence.")


class Dot(NamedTuple):
    """A value with its 95 % interval: a line of a panel.

    Attributes:
        group: what the line belongs to, named at the left.
        series: which marker; "" where there is but one.
        value: of the dot.
        ci95: half the width of its interval.
    """

    group: str
    series: str
    value: float
    ci95: float


def accuracy_figure(rows: Sequence[Row]) -> Figure:
    """Accuracy of every run under every head, a panel for each number of shots.

    Args:
        rows: of evaluation.json.
    """
    panels: dict[str, list[Dot]] = {}
    for row in rows:
        dots = panels.setdefault(f"{row['ways']}-way {row['shots']}-shot", [])
        dots.append(Dot(row["run"], row["head"], 100 * row["mean"], 100 * row["ci95"]))
    said = f"split {rows[0]['split']}, {rows[0]['num_tasks']:,} tasks, 95 % intervals"
    return _dot_figure(panels, "accuracy, %", said, at_least=5.0)


def clustering_figure(rows: Sequence[Row]) -> Figure:
    """r_fc and r_hv of every run, side by side.

    Args:
        rows: of measurement.json.
    """
    panels = {name: [Dot(row["run"], "", row[name], 1.96 * row[f"{name}_error"]) for row in rows]
              for name in ("r_fc", "r_hv")}
    said = f"split {rows[0]['split']}, {rows[0]['num_pairs']:,} pairs of classes, 95 % intervals"
    return _dot_figure(panels, "lower is tighter", said, at_least=0.2)


def _dot_figure(panels: Mapping[str, Sequence[Dot]], axis: str, said: str, at_least: float) -> Figure:
    """Panels of groups side by side, and below all what was measured.

    Args:
        panels: title -> dots.
        axis: what a value is.
        said: the last line.
        at_least: what an axis spans, so that an interval by itself does not look wide.
    """
    lines = max(_heights(dots)[-1] for dots in panels.values())
    figure = new_figure(2.2 + 2.9 * len(panels), _AROUND + _LINE * lines)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    styles = _styles(dot.series for dots in panels.values() for dot in dots)
    for number, (panel, (title, dots)) in enumerate(zip(axes, panels.items(), strict=True)):
        _draw_dots(panel, dots, styles)
        _widen(panel, at_least)
        panel.set_title(plain(title), fontsize=10)
        panel.set_xlabel(axis, fontsize=_SMALL)
        if number and _groups(dots) == _groups(next(iter(panels.values()))):
            panel.set_yticklabels([])
    _legend(figure, styles)
    figure.supxlabel(_wrapped(said, figure), fontsize=_SMALL)
    return figure


def _wrapped(text: str, figure: Figure) -> str:
    """In lines as wide as the figure, about."""
    return "\n".join(textwrap.wrap(plain(text), int(13 * figure.get_size_inches()[0])))


def _widen(panel: Axes, at_least: float) -> None:
    low, high = panel.get_xlim()
    more = max(0.0, at_least - (high - low)) / 2
    panel.set_xlim(low - more, high + more)


def _styles(series: Iterable[str]) -> dict[str, dict[str, Any]]:
    """A marker and a colour for each series; hollow once all have been used."""
    styles = {}
    for number, name in enumerate(dict.fromkeys(series)):
        colour = COLOURS[number % len(COLOURS)]
        styles[name] = {"marker": MARKERS[number % len(MARKERS)], "color": colour,
                        "markerfacecolor": colour if number < len(COLOURS) else "white"}
    return styles


def _legend(figure: Figure, styles: Mapping[str, Mapping[str, Any]]) -> None:
    """Names the series above the panels, if they have names."""
    if set(styles) == {""}:
        return
    shown = names_shown(styles)
    handles = [Line2D([], [], linestyle="none", label=shown[name], **style) for name, style in styles.items()]
    width = max(len(text) for text in shown.values()) / 14 + 0.4  # inches of a column, about
    columns = max(1, min(len(handles), int(figure.get_size_inches()[0] / width)))
    figure.legend(handles, list(shown.values()), loc="outside upper center", ncols=columns, frameon=False,
                  fontsize=_SMALL)


def _groups(dots: Sequence[Dot]) -> dict[str, list[int]]:
    """Group -> the numbers of its dots, in order of appearance."""
    groups: dict[str, list[int]] = {}
    for number, dot in enumerate(dots):
        groups.setdefault(dot.group, []).append(number)
    return groups


def _heights(dots: Sequence[Dot]) -> np.ndarray:
    """The height of each dot, in lines from the top, and last that of the end; groups of several stand apart."""
    heights, top = np.empty(len(dots) + 1), 0.0
    for numbers in _groups(dots).values():
        heights[numbers] = top + 0.5 + np.arange(len(numbers))
        top += len(numbers) + (0.5 if len(numbers) > 1 else 0.25)
    heights[-1] = top
    return heights


def _draw_dots(panel: Axes, dots: Sequence[Dot], styles: Mapping[str, Mapping[str, Any]]) -> None:
    heights, groups = _heights(dots), _groups(dots)
    for dot, height in zip(dots, heights[:-1], strict=True):
        panel.errorbar(dot.value, height, xerr=dot.ci95, markersize=5, capsize=3.5, elinewidth=1.1,
                       **styles[dot.series])
    for place, numbers in enumerate(groups.values()):
        if place % 2 and len(numbers) > 1:
            panel.axhspan(heights[numbers[0]] - 0.75, heights[numbers[-1]] + 0.75, color="0.94", zorder=0)
    shown = names_shown(groups)
    panel.set_yticks([heights[numbers].mean() for numbers in groups.values()], [shown[name] for name in groups])
    panel.set_ylim(heights[-1], 0)
    _plain_axes(panel)


def _plain_axes(panel: Axes) -> None:
    """Lines of a scale below, and none elsewhere."""
    panel.tick_params(labelsize=_SMALL)
    panel.tick_params(axis="y", length=0)
    panel.grid(axis="x", color="0.85", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right", "left"]].set_visible(False)


def reliability_figure(rows: Sequence[Row]) -> Figure | None:
    """Accuracy against confidence before and after calibration, a panel for each run, head and number of shots.

    Args:
        rows: of evaluation.json.

    Returns:
        matplotlib Figure; None where no calibration was measured.
    """
    lines: list[list[Row]] = []
    for run in dict.fromkeys(row["run"] for row in rows):
        mine = [row for row in rows if row["run"] == run and "calibration" in row]
        mine.sort(key=lambda row: row["shots"])  # stays by head at each
        across = -(-len(mine) // max(1, -(-len(mine) // _ACROSS)))
        lines += [mine[start : start + across] for start in range(0, len(mine), across or 1)]
    if not lines:
        return None
    columns = max(map(len, lines))
    figure = new_figure(2.3 * columns + 0.7, 2.95 * len(lines) + 0.7)
    said = _wrapped(_BARS, figure)
    figure.set_figheight(figure.get_figheight() + 0.15 * (1 + said.count("\n")))
    axes = figure.subplots(len(lines), columns, squeeze=False, sharex=True, sharey=True)
    shown = names_shown((row["run"] for row in rows), 26)
    for panels, line in zip(axes, lines, strict=True):
        panels[0].set_ylabel("accuracy, %", fontsize=_SMALL)
        for panel in panels[len(line) :]:
            panel.set_axis_off()
        for panel, row in zip(panels, line, strict=False):
            heading = f"{plain(short(row['head']))}, {row['ways']}-way {row['shots']}-shot"
            _draw_reliability(panel, row["calibration"], f"{shown[row['run']]}\n{heading}")
    figure.supxlabel(f"confidence, %\n{said}", fontsize=_SMALL)
    return figure


def mixed_up_figure(rows: Sequence[Row]) -> Figure | None:
    """The pairs of classes that heads mix up most, a panel for each run and number of shots, a marker for each head.

    A head has no marker at a pair that is not among the ten of its row.

    Args:
        rows: of evaluation.json.

    Returns:
        matplotlib Figure; None where no two classes met often enough.
    """
    runs, shots = (list(dict.fromkeys(row[key] for row in rows)) for key in ("run", "shots"))
    if not any(row["mixed_up"] for row in rows):
        return None
    figure = new_figure(4.3 * len(shots) + 0.2, 2.9 * len(runs) + 1.0)
    axes, styles = figure.subplots(len(runs), len(shots), squeeze=False), _styles(row["head"] for row in rows)
    shown = names_shown(runs)
    for panel, (run, count) in zip(axes.flat, itertools.product(runs, shots), strict=True):
        mine = [row for row in rows if (row["run"], row["shots"]) == (run, count)]
        if mine:
            _draw_pairs(panel, mine, styles)
            panel.set_title(f"{shown[run]}\n{mine[0]['ways']}-way {count}-shot", fontsize=9)
    _legend(figure, styles)
    said = "queries of either class answered to be of the other, % of those in tasks with both"
    figure.supxlabel(_wrapped(said, figure), fontsize=_SMALL)
    return figure


def _draw_pairs(panel: Axes, rows: Sequence[Row], styles: Mapping[str, Mapping[str, Any]]) -> None:
    """The pairs of the highest sums over heads, the highest on top."""
    rates: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        for pair in row["mixed_up"]:
            rates.setdefault(tuple(pair["classes"]), {})[row["head"]] = 100 * pair["rate"]
    first = sorted(rates, key=lambda pair: -sum(rates[pair].values()))[:_PAIRS]
    for row in rows:
        head = row["head"]
        points = [(rates[pair][head], height) for height, pair in enumerate(first) if head in rates[pair]]
        panel.plot(*np.reshape(points, (-1, 2)).T, linestyle="none", markersize=5, **styles[head])
    panel.set_yticks(range(len(first)), [" – ".join(plain(short(name, 16)) for name in pair) for pair in first])
    panel.set_ylim(max(len(first), 1) - 0.5, -0.5)
    panel.set_xlim(left=0)
    _plain_axes(panel)


def _draw_reliability(panel: Axes, calibration: Mapping[str, Any], title: str) -> None:
    """One panel: the diagonal, both curves, and how many queries each of their points stands for."""
    edges = np.linspace(0, 100, calibration["bins"] + 1)
    share = {when: 100 * np.divide(calibration[when]["counts"], sum(calibration[when]["counts"]))
             for when in ("before", "after")}
    panel.stairs(share["after"], edges, fill=True, color="0.85", zorder=0)
    panel.stairs(share["before"], edges, color="0.55", linestyle="--", linewidth=0.9, zorder=1)
    panel.plot([0, 100], [0, 100], color="0.4", linestyle=":", linewidth=1)
    for number, when in enumerate(("after", "before")):
        found = calibration[when]
        points = 100 * np.array([found["confidences"], found["accuracies"]])  # [2, bins]
        colour, face = COLOURS[number], "white" if when == "before" else COLOURS[number]
        style: dict[str, Any] = {"color": colour, "linestyle": LINES[number], "linewidth": 1.3}
        panel.plot(*points[:, share[when] >= 100 * _FEW], **style)
        some = share[when] > 0
        panel.scatter(points[0, some], points[1, some], s=8 + 0.9 * share[when][some], marker=MARKERS[number],
                      facecolor=face, edgecolor=colour, zorder=3, clip_on=False)
        panel.plot([], [], **style, marker=MARKERS[number], markersize=4.5, markerfacecolor=face,
                   label=f"{when}: ECE {100 * found['error']:.1f} %")
    panel.set(xlim=(0, 100), ylim=(0, 100), aspect="equal")
    panel.set_xticks([0, 50, 100])
    panel.set_yticks([0, 50, 100])
    panel.tick_params(labelsize=_SMALL)
    panel.spines[["top", "right"]].set_visible(False)
    legend = panel.legend(title=title, loc="lower left", bbox_to_anchor=(-0.05, 1.0), frameon=False, fontsize=8,
                          title_fontsize=_SMALL, borderpad=0, reverse=True)
    legend.set_alignment("left")
