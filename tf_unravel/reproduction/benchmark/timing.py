"""Timing that stands a machine whose speed drifts: what is compared takes turns within one run.

With A and B the rates of two works in the same round, a comparison is the median over rounds of A_r / B_r, never the
ratio of two medians taken apart: what slows a round down slows both. Every second round runs in reverse order
(A B, B A, A B, ...), so that a steady drift cancels.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

Name = TypeVar("Name", str, int)


@dataclass(frozen=True)
class Work:
    """Something to be timed.

    Args:
        run: does it once; must not return before it is done.
        amount: how much one call does, in the unit of the rate (images, tasks, steps).
    """

    run: Callable[[], Any]
    amount: float = 1.0


def interleaved(
    works: Mapping[Name, Work], rounds: int, warm_up: int = 1, clock: Callable[[], float] = time.perf_counter
) -> dict[Name, tuple[float, ...]]:
    """Returns the rate of every work in every round, amount / seconds.

    Args:
        works: by name; they take turns, in reverse order every second round.
        rounds: how often each is timed.
        warm_up: calls of each beforehand that are not timed (tracing, caches, buffers).
        clock: seconds; another one for tests.

    Returns:
        By name, one rate a round; entries of the same place belong together.

    Example:
        >>> rates = interleaved({"ours": Work(step, 128), "peer": Work(peer_step, 128)}, rounds=5)
        >>> summary(ratios(rates["ours"], rates["peer"])).median
    """
    for _ in range(warm_up):
        for work in works.values():
            work.run()
    rates: dict[Name, list[float]] = {name: [] for name in works}
    for number in range(rounds):
        for name in list(works) if number % 2 == 0 else reversed(list(works)):
            began = clock()
            works[name].run()
            rates[name].append(works[name].amount / (clock() - began))
    return {name: tuple(values) for name, values in rates.items()}


def ratios(ours: Sequence[float], peer: Sequence[float]) -> tuple[float, ...]:
    """Round by round, ours / peer; a peer of one value is a constant.

    Raises:
        ValueError: the numbers of rounds differ.
    """
    peer = list(peer) * len(ours) if len(peer) == 1 else peer
    if len(ours) != len(peer):
        raise ValueError(f"Rounds must pair up. Received: {len(ours)} of ours, {len(peer)} of the peer's.")
    return tuple(a / b for a, b in zip(ours, peer, strict=True))


@dataclass(frozen=True)
class Summary:
    """Median, smallest and largest of some values, and a 95 % interval of the median.

    The interval runs between order statistics, the value of rank n/2 - 0.98 sqrt(n) (rounded down) from either end,
    so that it assumes no distribution; with fewer than six values it is the whole range and covers less.
    """

    median: float
    low: float
    high: float
    interval: tuple[float, float]


def summary(values: Sequence[float]) -> Summary:
    """Summarises at least one value."""
    ordered, count = sorted(values), len(values)
    first = max(0, math.floor(count / 2 - 0.98 * math.sqrt(count)) - 1)
    return Summary(statistics.median(ordered), ordered[0], ordered[-1], (ordered[first], ordered[count - 1 - first]))
