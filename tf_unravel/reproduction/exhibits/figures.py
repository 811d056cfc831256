"""Figures 1 to 3 and Theorem 1 as exhibits: what they need, and how they are drawn."""

from collections.abc import Sequence

import numpy as np

from tf_unravel import analysis
from tf_unravel.reproduction.exhibits.exhibit import Cell, Claim, Comparison, Drawing, Exhibit, Number
from tf_unravel.reproduction.exhibits.tables import SHOTS, clustering_note
from tf_unravel.reproduction.jobs.measurements import Distance, Projection, read
from tf_unravel.reproduction.jobs.scales import Scale
from tf_unravel.reproduction.jobs.workspace import Workspace

# Variance ratios of Figure 1's two panels
_HIGH, _LOW = 1.0, 0.05
_EXTRACTORS = {"MAML": "maml_5", "ProtoNet": "protonet", "classically trained": "classical"}
_REPTILES = {"Reptile": "reptile", "weight clustering": "weight_clustering"}


def figure1(scale: Scale, seeds: Sequence[int]) -> Exhibit:
    """One-shot boundaries between two synthetic classes."""

    def draw(_: Workspace) -> list[Drawing]:
        high, low = analysis.one_shot_boundaries(_HIGH), analysis.one_shot_boundaries(_LOW)
        caption = "; ".join(
            f"variance ratio {each.ratio:.2f}: {100 * each.misclassified:.1f} ± {100 * each.standard_error:.1f} % "
            f"misclassified (one standard error over {len(each.per_pair):,} draws of one point a class, seed 0)"
            for each in (high, low)
        )
        return [Drawing("figure1", analysis.draw_boundaries(high, low), caption)]

    return Exhibit("figure1", "One-shot boundaries at a high and a low variance ratio", draw=draw)


def figure2(scale: Scale, seeds: Sequence[int]) -> Exhibit:
    """LDA projections of three extractors of one network."""
    runs = {name: scale.run(scale.home_beside, method, "conv4", seeds[0]) for name, method in _EXTRACTORS.items()}
    needs = tuple((run, Projection()) for run in runs.values() if run is not None)

    def draw(workspace: Workspace) -> list[Drawing]:
        found = {name: read(workspace.run_dir(run), Projection()) for name, run in runs.items() if run is not None}
        there = {name: each for name, each in found.items() if each and each["points"]}
        if not there:
            return []
        points = {name: np.array(each["points"]) for name, each in there.items()}
        ids = {name: np.array(each["class_ids"]) for name, each in there.items()}
        figure = analysis.draw(points, ids, next(iter(there.values()))["class_names"])
        caption = (
            f"Three new classes, 100 images each, drawn with seed 0; training seed {seeds[0]}; scale {scale.name}. "
            "Each point is projected onto directions found without it; the unit is the deviation within classes."
        )
        return [Drawing("figure2", figure, caption)]

    return Exhibit("figure2", "Feature space of MAML, ProtoNet and classical training", needs=needs, draw=draw)


def figure3(scale: Scale, seeds: Sequence[int]) -> Exhibit:
    """How far weights travel while they are fine-tuned, with and without weight clustering, and with more of it."""

    def cell(name: str, method: str, shots: int, some_seeds: Sequence[int], coefficient: float | None = None) -> Cell:
        runs = [run for seed in some_seeds if (run := scale.run(scale.home_beside, method, "conv4", seed, coefficient))]
        numbers = tuple(Number(run, Distance(shots, scale.distance_tasks), "distance") for run in runs)
        forms = [f"{run.coefficient:g} ({scale.form(run)})" for run in runs if run.coefficient is not None]
        return Cell((name, *forms[:1]), (f"{shots}-shot",), None, numbers, digits=3)

    cells = {(name, shots): cell(name, method, shots, seeds) for name, method in _REPTILES.items() for shots in SHOTS}
    chosen = next((number.run.coefficient for number in cells["weight clustering", SHOTS[0]].numbers), None)
    swept = [
        cell(f"weight clustering, {coefficient:g}", "weight_clustering", shots,
             seeds if scale.sweeps_repeat else seeds[:1], coefficient)
        for coefficient in scale.sweep if coefficient != chosen for shots in SHOTS
    ]
    comparisons = tuple(
        Comparison(f"{shots}-shot", cells["weight clustering", shots], cells["Reptile", shots], sign=-1)
        for shots in SHOTS
    )
    text = "Weights that were clustered travel less far while they are fine-tuned."

    def draw(workspace: Workspace) -> list[Drawing]:
        panels = {}
        for shots in SHOTS:
            numbers = {" ".join(cells[name, shots].row): cells[name, shots].numbers for name in _REPTILES}
            values = {name: each[0].of(workspace) for name, each in numbers.items() if each}
            there = {name: value.values for name, value in values.items() if value}
            if there and len(there) == len(values):
                panels[shots] = there
        if not panels:
            return []
        caption = (
            "Filter-normalised distance from the starting weights after fine-tuning to each of "
            f"{scale.distance_tasks:,} tasks; training seed {seeds[0]}; scale {scale.name}."
        )
        return [Drawing("figure3", analysis.draw_distances(panels), caption)]

    measurable = tuple(each for each in (*cells.values(), *swept) if each.numbers)
    return Exhibit(
        "figure3", "How far weights travel while fine-tuning", measurable,
        (Claim("clustered weights travel less", text, comparisons, "section 5.1", by_penalty=True),),
        ("The paper shows histograms and prints no number.", clustering_note(scale, measurable)), draw=draw,
    )


def theorem1(scale: Scale, seeds: Sequence[int]) -> Exhibit:
    """A Monte-Carlo check of Theorem 1's bound."""

    def draw(_: Workspace) -> list[Drawing]:
        records = analysis.theorem_check.check(draws=scale.theorem_draws)
        vacuous = [record for record in records if record.bound <= 0]
        below = [record for record in records if record.accuracy + 1.96 * record.standard_error < record.bound]
        worst = max(records, key=lambda record: (1 - record.accuracy) / record.ratio)
        caption = (
            f"{len(records)} pairs of a distribution and a variance ratio, {scale.theorem_draws:,} draws each, seed 0: "
            f"{len(below)} lie below the bound by more than their 95 % interval. The bound is vacuous (at most 0) for "
            f"ratios from 1/33 on, at {len(vacuous)} of them. The largest error for its ratio: {worst.family}, "
            f"{1 - worst.accuracy:.2g} at a ratio of {worst.ratio:.2g}, where the bound allows {1 - worst.bound:.2g}."
        )
        return [Drawing("theorem1", analysis.draw_theorem(records), caption)]

    title = "One-shot classification is right with probability at least 1 - 32 e / (1 - e)"
    return Exhibit("theorem1", title, draw=draw)


FIGURES = {"figure1": figure1, "figure2": figure2, "figure3": figure3, "theorem1": theorem1}
