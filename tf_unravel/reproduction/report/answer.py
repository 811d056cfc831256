"""The first screen of the report: does R_FC help, by how much, and at what cost? And R_HV."""

import statistics
from collections.abc import Sequence

from tf_unravel.reproduction.exhibits.claims import Difference, Verdict
from tf_unravel.reproduction.report.document import Block, Grid, Heading, Text
from tf_unravel.reproduction.report.rendering import NOTHING

_HEAD = ("regularizer", "raises the accuracy of classical training?", "percentage points, mean (each)",
         "the paper's", "intervals above / below zero", "an epoch costs, times a classical one (95 %)")


def answer(verdicts: Sequence[Verdict]) -> list[Block]:
    """The question and its answer, computed from the verdicts of Tables 3 and 7; nothing where neither was measured."""
    by_name = {verdict.claim.name: verdict for verdict in verdicts}
    cheap = _differences(by_name.get("regularizers are nearly free"))
    sentences, rows = [], []
    for name in ("R_FC", "R_HV"):
        helps = by_name.get(f"{name} helps")
        gains, costs = _differences(helps), [found for found in cheap if name in found.name]
        if helps is not None and gains:
            sentences.append(_sentence(name, helps, gains, costs))
            rows.append(_row(name, helps, gains, costs))
    if not rows:
        return []
    note = ("A comparison is one network, dataset, number of shots and training seed, with and without the regularizer "
            "on the same tasks. Each of them, and the coefficients: Table 3; the cost: Table 7.")
    title = "Does R_FC help, by how much, and at what cost?"
    return [Heading(title), Text(" ".join(sentences)), Grid(_HEAD, rows), Text(note, small=True)]


def _differences(verdict: Verdict | None) -> list[Difference]:
    """Of all seeds."""
    return [found for each in (verdict.differences.values() if verdict else ()) for found in each]


def _published(verdict: Verdict) -> list[float]:
    """The paper's own differences, of the comparisons that this scale has."""
    pairs = ((each.left.published, each.right.published) for each in verdict.claim.measurable)
    return [left.mean - right.mean for left, right in pairs if left and right]


def _sentence(name: str, verdict: Verdict, gains: Sequence[Difference], costs: Sequence[Difference]) -> str:
    printed = _published(verdict)
    paper = f" (the paper's: {statistics.mean(printed):+.2f})" if printed else ""
    change = f"{statistics.mean(found.mean for found in gains):+.2f} percentage points on average of {len(gains)}"
    time = f", and an epoch took {statistics.mean(found.mean for found in costs):.2f} times as long" if costs else ""
    return f"That {name} helps: {verdict.outcome}. Accuracy changed by {change} comparisons{paper}{time}."


def _row(name: str, verdict: Verdict, gains: Sequence[Difference], costs: Sequence[Difference]) -> list[str]:
    above, below = sum(found.low > 0 for found in gains), sum(found.high < 0 for found in gains)
    cost = ", ".join(f"{found.mean:.2f} ({found.low:.2f} to {found.high:.2f}; {found.name.split(', ', 1)[1]})"
                     for found in costs)
    return [name, verdict.outcome, _spread([found.mean for found in gains]), _spread(_published(verdict)),
            f"{above} / {below} of {len(gains)}", cost or NOTHING]


def _spread(values: Sequence[float]) -> str:
    """The mean, and from the least to the largest."""
    return f"{statistics.mean(values):+.2f} ({min(values):+.2f} to {max(values):+.2f})" if values else NOTHING
