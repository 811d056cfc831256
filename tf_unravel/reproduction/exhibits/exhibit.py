"""What a table or figure of the paper is made of.

    Number (one measurement of one run) -> Cell (one number of the paper, ours of every seed beside it)
    -> Comparison of two cells -> Claim -> Exhibit

An exhibit is data: which numbers it needs is read off it, and so is the plan of runs.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Any

from matplotlib.figure import Figure

from tf_unravel.reproduction.exhibits.published import Value
from tf_unravel.reproduction.jobs.measurements import Measured, Measurement, measured
from tf_unravel.reproduction.jobs.scales import RunName
from tf_unravel.reproduction.jobs.timing import Timing
from tf_unravel.reproduction.jobs.workspace import Workspace
from tf_unravel.reproduction.report.document import Block


@dataclasses.dataclass(frozen=True)
class Number:
    """One number of one run.

    Args:
        run: the run.
        measurement: what it is read from; a Timing is of several runs together.
        quantity: which number of it.
        scale: what it is multiplied by for printing (100 for %).
    """

    run: RunName
    measurement: Measurement | Timing
    quantity: str
    scale: float = 1.0

    def of(self, workspace: Workspace) -> Measured | None:
        """Its value; None where it has not been measured."""
        if isinstance(self.measurement, Timing):
            found = self.measurement.measured(workspace, self.run, self.quantity)
        else:
            found = measured(workspace.run_dir(self.run), self.measurement, self.quantity)
        return found and found.times(self.scale)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One place of a table.

    Args:
        row, column: labels, outermost first.
        published: what the paper prints there.
        numbers: ours, one a seed; none where the scale has no such run.
        digits: of ours, after the point.
        published_digits: of the paper's.
    """

    row: tuple[str, ...]
    column: tuple[str, ...]
    published: Value | None
    numbers: tuple[Number, ...]
    digits: int = 2
    published_digits: int = 2


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two cells that a claim sets against each other, the same tasks under both.

    Args:
        name: of the comparison.
        left, right: the cells; the claim is about left - right.
        sign: +1 where it says that the left is larger, -1 smaller.
        at_most: instead, where it says that left / right is at most this (times).
    """

    name: str
    left: Cell
    right: Cell
    sign: int = 1
    at_most: float | None = None

    @property
    def measurable(self) -> bool:
        """Whether the scale has runs of both; else only the paper's numbers can be compared."""
        return bool(self.left.numbers and self.right.numbers)


@dataclasses.dataclass(frozen=True)
class Claim:
    """Something the paper says, or a question of this project, as comparisons that must all come out.

    Args:
        name: short, for references.
        text: the claim, in one sentence.
        comparisons: what it means in numbers; those that the scale has no runs for are judged in print only.
        section: where the paper says it; empty for a question that is this project's own.
        by_penalty: whether it is about what a penalty does: no verdict then where the recorded size of its gradient
            says that it did nothing.
    """

    name: str
    text: str
    comparisons: tuple[Comparison, ...]
    section: str = ""
    by_penalty: bool = False

    @property
    def source(self) -> str:
        """Whose it is."""
        return f"the paper, {self.section}" if self.section else "this project's own question"

    @property
    def measurable(self) -> tuple[Comparison, ...]:
        """The comparisons that the scale has runs for."""
        return tuple(each for each in self.comparisons if each.measurable)


@dataclasses.dataclass(frozen=True)
class Exhibit:
    """A table or figure.

    Args:
        name: "table1", "figure2", "theorem1".
        title: one line.
        cells: of a table, row by row.
        claims: what the paper draws from it.
        notes: what must be said beside it.
        needs: further (run, measurement) of a figure.
        draw: workspace -> figures with the lines that belong under each; none where nothing was measured.
        check: (name, r_fc, r_hv) of Tables 2 and 4, whose relation is printed.
        printed_on: the paper's dataset, where ours is another one than that beside whose numbers it stands.
        blocks: workspace -> further tables and text, computed from what has been measured.
    """

    name: str
    title: str
    cells: tuple[Cell, ...] = ()
    claims: tuple[Claim, ...] = ()
    notes: tuple[str, ...] = ()
    needs: tuple[tuple[RunName, Measurement], ...] = ()
    draw: Callable[[Workspace], list[Drawing]] | None = None
    check: tuple[tuple[str, Number, Number], ...] = ()
    printed_on: str = ""
    blocks: Callable[[Workspace], list[Block]] | None = None

    @property
    def empty(self) -> bool:
        """Whether the scale has no training for any of it."""
        return not (self.cells or self.needs or self.draw or self.blocks)

    @property
    def heading(self) -> str:
        """The name and the title."""
        number = re.fullmatch(r"([a-z]+)(\d+)", self.name)
        return f"{number[1].capitalize()} {number[2]}: {self.title}" if number else self.title

    def wanted(self) -> Iterable[tuple[RunName, Measurement | Timing]]:
        """Every run with a measurement that must be made of it."""
        yield from self.needs
        for cell in self.cells:
            yield from ((number.run, number.measurement) for number in cell.numbers)
        for _, *numbers in self.check:
            yield from ((number.run, number.measurement) for number in numbers)


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure of an exhibit.

    Args:
        name: of its files.
        figure: the picture.
        caption: what it shows, with its numbers.
    """

    name: str
    figure: Figure
    caption: str


Builder = Callable[[Any, tuple[int, ...]], Exhibit]
