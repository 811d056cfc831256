"""Verdicts against differences worked out by hand."""

import math

import numpy as np
import pytest

from tests.paper.fakes import put, workspace
from tf_unravel.paper.claims import FAILS, HOLDS, OPEN, judge, paired
from tf_unravel.paper.exhibit import Cell, Claim, Comparison, Number
from tf_unravel.paper.measurements import Accuracy, Measured
from tf_unravel.paper.scales import RunName

WANTED = Accuracy("svm", 1, 4)


def cell(training: str, seeds=(0,)) -> Cell:
    numbers = tuple(Number(RunName("toy", training, None, seed), WANTED, "accuracy", 100.0) for seed in seeds)
    return Cell((training,), ("1-shot",), None, numbers)


def claim(*comparisons: Comparison) -> Claim:
    return Claim("c", "left is better", comparisons)


def fill(tmp_path, training, values, seed=0):
    put(tmp_path / str(RunName("toy", training, None, seed)), WANTED, accuracy=values)


def test_a_difference_by_hand(tmp_path):
    # Differences in points: 10, 20, 30, 20: mean 20, variance (100 + 0 + 100 + 0) / 3, error sqrt(200 / 3) / 2 = 4.0825
    fill(tmp_path, "a@r2d2", [0.5, 0.6, 0.7, 0.6])
    fill(tmp_path, "b@r2d2", [0.4, 0.4, 0.4, 0.4])
    verdict = judge(claim(Comparison("a, b", cell("a@r2d2"), cell("b@r2d2"))), workspace(tmp_path))
    (found,) = verdict.differences[0]
    assert found.mean == pytest.approx(20) and found.count == 4
    assert found.high - found.mean == pytest.approx(1.959964 * math.sqrt(200 / 3) / 2)
    assert verdict.outcome == HOLDS


@pytest.mark.parametrize(("values", "sign", "outcome"), [
    ([0.5, 0.6, 0.7, 0.6], 1, HOLDS), ([0.5, 0.6, 0.7, 0.6], -1, FAILS),
    ([0.1, 0.2, 0.1, 0.2], 1, FAILS), ([0.1, 0.2, 0.1, 0.2], -1, HOLDS), ([0.3, 0.5, 0.3, 0.5], 1, OPEN),
])
def test_outcome_follows_the_side_of_the_interval(tmp_path, values, sign, outcome):
    fill(tmp_path, "a@r2d2", values)
    fill(tmp_path, "b@r2d2", [0.4, 0.4, 0.4, 0.4])
    comparison = Comparison("a, b", cell("a@r2d2"), cell("b@r2d2"), sign)
    assert judge(claim(comparison), workspace(tmp_path)).outcome == outcome


def test_intervals_widen_with_the_number_of_comparisons(tmp_path):
    fill(tmp_path, "a@r2d2", [0.5, 0.6, 0.7, 0.6])
    fill(tmp_path, "b@r2d2", [0.4, 0.4, 0.4, 0.4])
    comparison = Comparison("a, b", cell("a@r2d2"), cell("b@r2d2"))
    half = {}
    for count in (1, 5):
        found = judge(claim(*[comparison] * count), workspace(tmp_path)).differences[0][0]
        half[count] = found.high - found.mean
    assert half[5] / half[1] == pytest.approx(2.575829 / 1.959964, rel=1e-5)  # z at 1 - 0.025 / 5 over z at 1 - 0.025


def test_one_counterexample_is_enough_and_one_open_comparison_too(tmp_path):
    fill(tmp_path, "up@r2d2", [0.5, 0.6, 0.7, 0.6])
    fill(tmp_path, "down@r2d2", [0.1, 0.0, 0.1, 0.0])
    fill(tmp_path, "level@r2d2", [0.3, 0.5, 0.3, 0.5])
    fill(tmp_path, "b@r2d2", [0.4, 0.4, 0.4, 0.4])
    to = {name: Comparison(name, cell(f"{name}@r2d2"), cell("b@r2d2")) for name in ("up", "down", "level")}
    there = workspace(tmp_path)
    assert judge(claim(to["up"], to["down"], to["level"]), there).outcome == FAILS
    assert judge(claim(to["up"], to["level"]), there).outcome == OPEN
    assert judge(claim(to["up"], to["up"]), there).outcome == HOLDS


def test_what_was_not_measured_decides_nothing(tmp_path):
    fill(tmp_path, "a@r2d2", [0.5, 0.6, 0.7, 0.6])
    comparison = Comparison("a, b", cell("a@r2d2"), cell("b@r2d2"))
    assert judge(claim(comparison), workspace(tmp_path)).outcome == OPEN
    assert judge(claim(), workspace(tmp_path)).outcome == OPEN


def test_seeds_must_agree(tmp_path):
    for seed, values in enumerate([[0.5, 0.6, 0.7, 0.6], [0.1, 0.0, 0.1, 0.0]]):
        fill(tmp_path, "a@r2d2", values, seed)
        fill(tmp_path, "b@r2d2", [0.4, 0.4, 0.4, 0.4], seed)
    verdict = judge(claim(Comparison("a, b", cell("a@r2d2", (0, 1)), cell("b@r2d2", (0, 1)))), workspace(tmp_path))
    assert (verdict.of_seed(0), verdict.of_seed(1), verdict.outcome) == (HOLDS, FAILS, OPEN)


@pytest.mark.parametrize(("seconds", "outcome"), [([1.02] * 9, HOLDS), ([1.2] * 9, FAILS), ([1.0, 1.2] * 4, OPEN)])
def test_a_ratio_is_held_against_its_limit(tmp_path, seconds, outcome):
    wanted = Accuracy("svm", 1, len(seconds))
    for name, values in (("a@r2d2", seconds), ("b@r2d2", [1.0] * len(seconds))):
        put(tmp_path / str(RunName("toy", name, None, 0)), wanted, accuracy=values)
    left, right = (
        Cell((name,), ("",), None, (Number(RunName("toy", name, None, 0), wanted, "accuracy"),))
        for name in ("a@r2d2", "b@r2d2")
    )
    verdict = judge(claim(Comparison("a / b", left, right, at_most=1.1)), workspace(tmp_path))
    assert verdict.outcome == outcome and verdict.differences[0][0].ratio


def test_only_the_same_tasks_are_paired():
    def found(unit="tasks", seed=0, fingerprint="f") -> Measured:
        return Measured.of([0.1, 0.2, 0.4], unit, seed, "inductive", fingerprint)

    np.testing.assert_allclose(paired(found(), found()), 0)
    for other in ({"fingerprint": "g"}, {"seed": 1}, {"unit": "pairs"}):
        with pytest.raises(ValueError, match="same tasks can be paired"):
            paired(found(), found(**other))
