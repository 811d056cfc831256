"""The first screen of the report: does R_FC help, by how much, and at what cost? And R_HV."""

import statistics
from collections.abc import Sequence

from tf_unravel.paper.claims import Difference, Verdict
from tf_unravel.paper.document import Block, Grid, Heading, Text
from tf_unravel.paper.rendering import NOTHING

_HEAD = ("regularizer", "raises the accuracy of classical training?", "points of accuracy",
         "differences clearly above / below zero", "an epoch costs, times a classical one")


def answer(verdicts: Sequence[Verdict]) -> list[Block]:
    """The question and its answer, computed from the verdicts of Tables 3 and 7; nothing where neither was measured."""
    by_name = {verdict.claim.name: verdict for verdict in verdicts}
    cheap = _differences(by_name.get("regularizers are nearly free"))
    sentences, rows = [], []
    for name in ("R_FC", "R_HV"):
        helps = by_name.get(f"{name} helps")
        gains, costs = _differences(helps), [found for found in cheap if name in found.name]
        if helps is not None and gains:
            sentences.append(_sentence(name, helps.outcome, gains, costs))
            rows.append(_row(name, helps.outcome, gains, costs))
    if not rows:
        return []
    note = "Details: Tables 3 and 7 below; the spread between training seeds is in their brackets."
    title = "Does R_FC help, by how much, and at what cost?"
    return [Heading(title), Text(" ".join(sentences)), Grid(_HEAD, rows), Text(note, small=True)]


def _differences(verdict: Verdict | None) -> list[Difference]:
    """Of all seeds."""
    return [found for each in (verdict.differences.values() if verdict else ()) for found in each]


def _sentence(name: str, outcome: str, gains: Sequence[Difference], costs: Sequence[Difference]) -> str:
    change = f"{statistics.mean(found.mean for found in gains):+.2f} points on average of {len(gains)} comparisons"
    time = f", and an epoch took {statistics.mean(found.mean for found in costs):.2f} times as long" if costs else ""
    return f"That {name} helps: {outcome}. Accuracy changed by {change}{time}."


def _row(name: str, outcome: str, gains: Sequence[Difference], costs: Sequence[Difference]) -> list[str]:
    means = [found.mean for found in gains]
    above, below = sum(found.low > 0 for found in gains), sum(found.high < 0 for found in gains)
    cost = ", ".join(f"{found.mean:.2f} ({found.low:.2f} to {found.high:.2f})" for found in costs)
    spread, clear = f"{min(means):+.2f} to {max(means):+.2f}", f"{above} / {below} of {len(gains)}"
    return [name, outcome, spread, clear, cost or NOTHING]
