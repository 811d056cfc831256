"""Verdicts: whether a claim comes out here, from paired differences, and in the paper's printed numbers.

Over trainings, one for each seed s, which is what the verdict rests on:

    d_s = mean over the same tasks of left_s - right_s,  interval = mean_s d_s +- t * std(d_s, ddof=1) / sqrt(S)

with Student's t of S - 1 degrees of freedom at 1 - 0.025 / m: 95 % shared among the m comparisons of the claim
(Bonferroni). A claim holds if every comparison's interval lies on its side of zero; it does not hold if one lies wholly
on the other; else it is not decided. Fewer than three trainings (`LEAST_TRAININGS`) decide nothing.

Over the tasks i (or pairs of classes) of one training, printed beside it:

    d_i = left_i - right_i,  interval = mean_i d_i +- z * std(d_i, ddof=1) / sqrt(n)

It says how well that training was measured and nothing about the spread between trainings.

A claim "left costs at most a times right" is the interval of the ratios of rounds that took turns, the median between
order statistics, against a; a seed does not change what a step costs, so one training decides it.

The same rule is applied to what the paper prints, as far as its numbers go:

    d = left - right,  error = sqrt(error_left^2 + error_right^2)

Its tasks cannot be paired, so that its intervals are wider than paired ones would be. Where it prints no errors (Tables
2, 4 and 7) the interval is what rounding leaves open, and the outcome says so.

A claim about what a penalty does gets no verdict from a training in which the penalty's gradient was too small beside
the loss's to do anything (`penalty.LEAST_RATIO`).
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

import numpy as np
import scipy.stats

from tf_unravel.reproduction.benchmark.timing import summary
from tf_unravel.reproduction.exhibits.exhibit import Claim, Comparison
from tf_unravel.reproduction.exhibits.penalty import LEAST_RATIO, gradient_ratio
from tf_unravel.reproduction.exhibits.published import Value
from tf_unravel.reproduction.jobs.measurements import Measured
from tf_unravel.reproduction.jobs.workspace import Workspace

HOLDS, FAILS, OPEN = "holds", "does not hold", "not decided at this scale"
UNDECIDED = "not decided"  # of printed numbers, which are of no scale
NO_EFFECT = "the coefficient has no effect"
NOT_PRINTED = "not printed"
LEAST_TRAININGS = 3
UNPAIRED, ROUNDING = "unpaired", "rounding alone"


@dataclasses.dataclass(frozen=True)
class Difference:
    """One comparison with one seed.

    Args:
        name: of the comparison.
        mean: left - right, or the median of left / right.
        low, high: the interval, as wide as the claim's number of comparisons asks.
        count: values that were paired.
        unit: what they are.
        outcome: what it says of the claim.
        ratio: whether it is a ratio.
    """

    name: str
    mean: float
    low: float
    high: float
    count: int
    unit: str
    outcome: str
    ratio: bool = False

    def __str__(self) -> str:
        sign = "" if self.ratio else "+"
        interval = f"{self.low:{sign}.2f} to {self.high:{sign}.2f}"
        return f"{self.mean:{sign}.2f} ({interval}; {self.count:,} {self.unit})"


@dataclasses.dataclass(frozen=True)
class OverTrainings:
    """One comparison over all trainings.

    Args:
        name: of the comparison.
        mean: of the trainings' differences.
        low, high: Student's interval; infinite with one training.
        trainings: how many.
        outcome: what it says of the claim.
    """

    name: str
    mean: float
    low: float
    high: float
    trainings: int
    outcome: str

    def __str__(self) -> str:
        interval = f" ({self.low:+.2f} to {self.high:+.2f})" if self.trainings > 1 else ""
        return f"{self.mean:+.2f}{interval}"


@dataclasses.dataclass(frozen=True)
class Printed:
    """One comparison of the paper's printed numbers.

    Args:
        name: of the comparison.
        mean: left - right, or left / right.
        low, high: the interval.
        basis: what the interval knows of: the two standard errors ("unpaired") or rounding alone.
        outcome: what it says of the claim.
        ratio: whether it is a ratio.
    """

    name: str
    mean: float
    low: float
    high: float
    basis: str
    outcome: str
    ratio: bool = False

    def __str__(self) -> str:
        sign = "" if self.ratio else "+"
        return f"{self.mean:{sign}.2f} ({self.low:{sign}.2f} to {self.high:{sign}.2f}; {self.basis})"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What came of a claim.

    Args:
        claim: the claim.
        differences: seed -> its comparisons; those that were not measured are missing.
        printed: the comparisons of the paper's numbers.
        ratios: of a claim about a penalty, seed -> `penalty.gradient_ratio`.
    """

    claim: Claim
    differences: dict[int, list[Difference]]
    printed: tuple[Printed, ...] = ()
    ratios: dict[int, float | None] = dataclasses.field(default_factory=dict)

    def has_effect(self, seed: int) -> bool:
        """Whether the penalty that the claim is about did anything in the training with this seed."""
        ratio = self.ratios.get(seed)
        return not self.claim.by_penalty or (ratio is not None and ratio >= LEAST_RATIO)

    def of_seed(self, seed: int) -> str:
        """The verdict of one seed; of comparisons that were not measured nothing is known."""
        found = self.differences[seed]
        if found and not self.has_effect(seed):
            ratio = self.ratios.get(seed)
            return f"{NO_EFFECT} (gradient ratio {ratio:.1g})" if ratio is not None else f"{OPEN} (no gradient ratio)"
        return _together([difference.outcome for difference in found], len(self.claim.measurable))

    @property
    def judged(self) -> list[int]:
        """The seeds whose trainings count: those that were measured, with a penalty that did something."""
        return sorted(seed for seed, found in self.differences.items() if found and self.has_effect(seed))

    @property
    def over_trainings(self) -> list[OverTrainings]:
        """Each comparison over the trainings that count; those of ratios are judged by their rounds alone."""
        by_name: dict[str, list[float]] = {}
        for seed in self.judged:
            for found in self.differences[seed]:
                if not found.ratio:
                    by_name.setdefault(found.name, []).append(found.mean)
        signs = {each.name: each.sign for each in self.claim.measurable}
        tail = _tail(len(self.claim.measurable))
        return [_over_trainings(name, signs[name], values, tail) for name, values in by_name.items()]

    @property
    def outcome(self) -> str:
        """The verdict."""
        each = {self.of_seed(seed) for seed, found in self.differences.items() if found}
        if each and not self.judged:
            largest = max((ratio for ratio in self.ratios.values() if ratio is not None), default=None)
            return f"{NO_EFFECT} (gradient ratio {largest:.1g})" if largest is not None else each.pop()
        if any(found.ratio for differences in self.differences.values() for found in differences):
            return each.pop() if len(each) == 1 else OPEN
        over = self.over_trainings
        fewest = min((each.trainings for each in over), default=0)
        if 0 < fewest < LEAST_TRAININGS:
            return f"{OPEN} ({fewest} training{'s' if fewest > 1 else ''}; {LEAST_TRAININGS} at least)"
        return _together([each.outcome for each in over], len(self.claim.measurable))

    @property
    def of_paper(self) -> str:
        """The verdict that the same rule gives on the paper's printed numbers."""
        if not self.printed:
            return NOT_PRINTED
        outcome = _together([each.outcome for each in self.printed], len(self.printed))
        said = UNDECIDED if outcome == OPEN else outcome
        return f"{said}, by {ROUNDING}" if self.printed[0].basis == ROUNDING else said


def _together(outcomes: Sequence[str], wanted: int) -> str:
    """Of all comparisons of a claim: one that fails is enough, and all must be there to hold."""
    if FAILS in outcomes:
        return FAILS
    return HOLDS if len(outcomes) == wanted > 0 and set(outcomes) == {HOLDS} else OPEN


def judge(claim: Claim, workspace: Workspace) -> Verdict:
    """Computes the verdict of a claim from what was measured, and from what the paper printed."""
    z = _z(len(claim.measurable))
    differences: dict[int, list[Difference]] = {}
    ratios: dict[int, float | None] = {}
    for comparison in claim.measurable:
        rights = {number.run.seed: number for number in comparison.right.numbers}
        for number in comparison.left.numbers:
            seed = number.run.seed
            found = differences.setdefault(seed, [])
            other = rights.get(seed)
            left, right = number.of(workspace), other.of(workspace) if other else None
            if left is not None and right is not None:
                found.append(_difference(comparison, left, right, z))
            if claim.by_penalty and seed not in ratios:
                ratios[seed] = gradient_ratio(workspace.run_dir(number.run))
    return Verdict(claim, differences, printed(claim), ratios)


def printed(claim: Claim) -> tuple[Printed, ...]:
    """The comparisons of a claim in the paper's printed numbers; those of which it prints both."""
    pairs = [(each, each.left.published, each.right.published) for each in claim.comparisons]
    there = [(each, left, right) for each, left, right in pairs if left is not None and right is not None]
    z = _z(len(there))
    return tuple(_of_print(each, left, right, z) for each, left, right in there)


def _of_print(comparison: Comparison, left: Value, right: Value, z: float) -> Printed:
    name = comparison.name
    off_left, off_right = (0.5 * 10.0**-cell.published_digits for cell in (comparison.left, comparison.right))
    if comparison.at_most is not None:
        low, high = (left.mean - off_left) / (right.mean + off_right), (left.mean + off_left) / (right.mean - off_right)
        return Printed(name, left.mean / right.mean, low, high, ROUNDING, _below(comparison.at_most, low, high), True)
    mean, half, basis = left.mean - right.mean, off_left + off_right, ROUNDING
    if left.standard_error is not None and right.standard_error is not None:
        half, basis = z * math.hypot(left.standard_error, right.standard_error), UNPAIRED
    return Printed(name, mean, mean - half, mean + half, basis, _outcome(comparison.sign, mean, half))


def _tail(comparisons: int) -> float:
    """What lies below the upper end of an interval, when some comparisons share 95 %."""
    return 1 - 0.025 / max(1, comparisons)


def _z(comparisons: int) -> float:
    """Errors to each side of a mean that make a 95 % interval of each of some comparisons together."""
    return statistics.NormalDist().inv_cdf(_tail(comparisons))


def student(values: Sequence[float], tail: float = 0.975) -> tuple[float, float]:
    """The mean of some trainings' values, and half the width of Student's interval of it.

    Args:
        values: one for each training.
        tail: what lies below the interval's upper end; 0.975 for 95 %.

    Returns:
        (mean, half); half is infinite with one training.
    """
    count, mean = len(values), statistics.mean(values)
    if count < 2:
        return mean, math.inf
    return mean, float(scipy.stats.t.ppf(tail, count - 1)) * statistics.stdev(values) / math.sqrt(count)


def _over_trainings(name: str, sign: int, values: Sequence[float], tail: float) -> OverTrainings:
    mean, half = student(values, tail)
    return OverTrainings(name, mean, mean - half, mean + half, len(values), _outcome(sign, mean, half))


def _below(limit: float, low: float, high: float) -> str:
    return HOLDS if high <= limit else FAILS if low > limit else OPEN


def _outcome(sign: int, mean: float, half: float) -> str:
    sides = sign * (mean - half), sign * (mean + half)
    return HOLDS if min(sides) > 0 else FAILS if max(sides) < 0 else OPEN


def paired(left: Measured, right: Measured) -> np.ndarray:
    """left - right, task by task [n], those left out that one of them has no value of.

    Raises:
        ValueError: they are of different tasks.
    """
    same = (left.fingerprint, left.unit, left.seed, len(left.values))
    other = (right.fingerprint, right.unit, right.seed, len(right.values))
    if same != other:
        raise ValueError(f"Only measurements over the same {left.unit} can be paired. Received: {same} and {other}.")
    difference = left.values - right.values
    return difference[np.isfinite(difference)]


def _difference(comparison: Comparison, left: Measured, right: Measured, z: float) -> Difference:
    if comparison.at_most is not None:
        ratio = summary(tuple(left.values / right.values))
        low, high = ratio.interval
        outcome = _below(comparison.at_most, low, high)
        return Difference(comparison.name, ratio.median, low, high, left.count, left.unit, outcome, ratio=True)
    values = paired(left, right)
    mean = float(values.mean())
    half = z * float(values.std(ddof=1)) / math.sqrt(len(values))
    outcome = _outcome(comparison.sign, mean, half)
    return Difference(comparison.name, mean, mean - half, mean + half, len(values), left.unit, outcome)
