"""One line of the benchmark: what was measured, against what, and whether it is what was aimed at."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tf_unravel.reproduction.benchmark.timing import ratios, summary
from tf_unravel.text_table import text_table


@dataclass(frozen=True)
class Target:
    """What a measurement is to reach.

    Args:
        bound: the figure.
        at_least: whether it is a lower bound; otherwise an upper one.
        of_ratio: whether it bounds ours / peer; otherwise our own figure.
    """

    bound: float
    at_least: bool = True
    of_ratio: bool = True

    def reached(self, value: float) -> bool:
        """Whether a value keeps the bound."""
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.bound:g}"


@dataclass(frozen=True)
class Measurement:
    """A figure of ours, if possible beside a peer's of the same run.

    Args:
        what: what was done.
        unit: of `ours` and `peer`.
        ours: one value a round.
        peer: one value for each of the same rounds; a single value is a constant from elsewhere; () for none.
        peer_name: who the peer is.
        target: what is aimed at; None where nothing is.
        note: what a reader must know to judge it.
    """

    what: str
    unit: str
    ours: tuple[float, ...]
    peer: tuple[float, ...] = ()
    peer_name: str = ""
    target: Target | None = None
    note: str = ""

    @classmethod
    def of_plain(cls, values: dict[str, Any]) -> "Measurement":
        """The measurement whose `dataclasses.asdict` went through JSON."""
        target = values["target"] and Target(**values["target"])
        return cls(**{**values, "ours": tuple(values["ours"]), "peer": tuple(values["peer"]), "target": target})

    @property
    def ratios(self) -> tuple[float, ...]:
        """ours / peer of every round; () without a peer."""
        return ratios(self.ours, self.peer) if self.peer else ()

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the target; None without a target, or without the peer it refers to."""
        values = self.ratios if self.target and self.target.of_ratio else self.ours
        return self.target.reached(summary(values).median) if self.target and values else None

    def as_json(self) -> dict[str, Any]:
        """Everything, medians and single rounds, as plain values."""
        ratio = summary(self.ratios) if self.peer else None
        return {
            "what": self.what,
            "unit": self.unit,
            "ours": summary(self.ours).median,
            "ours_by_round": list(self.ours),
            "peer": summary(self.peer).median if self.peer else None,
            "peer_by_round": list(self.peer),
            "peer_name": self.peer_name,
            "ratio": ratio.median if ratio else None,
            "ratio_range": [ratio.low, ratio.high] if ratio else None,
            "ratio_interval95": list(ratio.interval) if ratio else None,
            "target": None if self.target is None else f"{'ratio' if self.target.of_ratio else 'ours'} {self.target}",
            "met": self.met,
            "note": self.note,
        }


def table(measurements: Sequence[Measurement]) -> str:
    """The measurements as aligned columns, one line each, with their notes numbered below."""
    notes = list(dict.fromkeys(each.note for each in measurements if each.note))
    rows = [("what", "ours", "peer", "ratio (min-max)", "target", "met")]
    for each in measurements:
        mark = f" [{notes.index(each.note) + 1}]" if each.note else ""
        peer = f"{_figure(summary(each.peer).median)} ({each.peer_name})" if each.peer else each.peer_name or "-"
        rows.append((each.what + mark, f"{_figure(summary(each.ours).median)} {each.unit}", peer, _ratio(each),
                     _target(each), {True: "yes", False: "NO", None: "-"}[each.met]))
    return "\n".join([text_table(rows, ruled=False), *(f"[{number}] {note}" for number, note in enumerate(notes, 1))])


def _target(measurement: Measurement) -> str:
    target = measurement.target
    if target is None:
        return "-"
    return str(target) if target.of_ratio else f"{target} {measurement.unit}"


def _ratio(measurement: Measurement) -> str:
    if not measurement.peer:
        return "-"
    ratio = summary(measurement.ratios)
    digits = 3 if ratio.median < 2 else 1
    return f"{ratio.median:.{digits}f} ({ratio.low:.{digits}f}-{ratio.high:.{digits}f})"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
