"""Verdicts: whether what the paper claims comes out here, computed from paired differences.

    d_i = left_i - right_i over the same tasks i (or pairs of classes),  mean d,  error = std(d, ddof=1) / sqrt(n)
    interval = mean d +- z * error,  z for 95 % shared among the m comparisons of the claim (Bonferroni): 1 - 0.025 / m

A claim holds with one seed if every comparison's interval lies on its side of zero; it does not hold if one lies wholly
on the other; else it is not decided at this scale. Over seeds it holds, or does not, if it does so with each of them.
A claim "left costs at most a times right" is the interval of the ratios of rounds that took turns, the median between
order statistics, against a.

An interval over tasks knows nothing of the spread between trainings: that is what several seeds show.
"""

from __future__ import annotations

import dataclasses
import math
import statistics

import numpy as np

from tf_unravel.benchmark.timing import summary
from tf_unravel.paper.exhibit import Claim, Comparison
from tf_unravel.paper.measurements import Measured
from tf_unravel.paper.workspace import Workspace

HOLDS, FAILS, OPEN = "holds", "does not hold", "not decided at this scale"


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
class Verdict:
    """What came of a claim.

    Args:
        claim: the claim.
        differences: seed -> its comparisons; those that were not measured are missing.
    """

    claim: Claim
    differences: dict[int, list[Difference]]

    def of_seed(self, seed: int) -> str:
        """The verdict of one seed; of comparisons that were not measured nothing is known."""
        found = self.differences[seed]
        if any(difference.outcome == FAILS for difference in found):
            return FAILS
        complete = len(found) == len(self.claim.comparisons) > 0
        return HOLDS if complete and all(difference.outcome == HOLDS for difference in found) else OPEN

    @property
    def outcome(self) -> str:
        """The verdict over all seeds."""
        each = {self.of_seed(seed) for seed in self.differences}
        return each.pop() if len(each) == 1 else OPEN


def judge(claim: Claim, workspace: Workspace) -> Verdict:
    """Computes the verdict of a claim from what was measured."""
    z = statistics.NormalDist().inv_cdf(1 - 0.025 / max(1, len(claim.comparisons)))
    differences: dict[int, list[Difference]] = {}
    for comparison in claim.comparisons:
        rights = {number.run.seed: number for number in comparison.right.numbers}
        for number in comparison.left.numbers:
            seed = number.run.seed
            found = differences.setdefault(seed, [])
            other = rights.get(seed)
            left, right = number.of(workspace), other.of(workspace) if other else None
            if left is not None and right is not None:
                found.append(_difference(comparison, left, right, z))
    return Verdict(claim, differences)


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
        outcome = HOLDS if high <= comparison.at_most else FAILS if low > comparison.at_most else OPEN
        return Difference(comparison.name, ratio.median, low, high, left.count, left.unit, outcome, ratio=True)
    values = paired(left, right)
    mean = float(values.mean())
    half = z * float(values.std(ddof=1)) / math.sqrt(len(values))
    sides = comparison.sign * (mean - half), comparison.sign * (mean + half)
    outcome = HOLDS if min(sides) > 0 else FAILS if max(sides) < 0 else OPEN
    return Difference(comparison.name, mean, mean - half, mean + half, len(values), left.unit, outcome)
