"""An exhibit as blocks: the paper's number and ours side by side, the caption that says how ours came about, verdicts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from tf_unravel import runs
from tf_unravel.reproduction.exhibits.claims import OPEN, UNDECIDED, Difference, OverTrainings, Printed, Verdict, judge
from tf_unravel.reproduction.exhibits.exhibit import Cell, Exhibit
from tf_unravel.reproduction.exhibits.published import MARKS, Value
from tf_unravel.reproduction.jobs.measurements import Accuracy, Measured, Tuned
from tf_unravel.reproduction.jobs.scales import RunName
from tf_unravel.reproduction.jobs.workspace import Workspace
from tf_unravel.reproduction.report.document import Block, Grid, Heading, Text

NOTHING = "–"
NOT_MEASURED = "nothing measured"


def blocks_of(exhibit: Exhibit, workspace: Workspace) -> list[Block]:
    """Title, table, caption, check and verdicts of an exhibit; its figures are drawn elsewhere."""
    blocks: list[Block] = [Heading(exhibit.heading)]
    if exhibit.cells:
        protocol = protocol_of(exhibit.cells, workspace)
        blocks += [Text(protocol)] if protocol else []
        blocks += [table_of(exhibit.cells, workspace, exhibit.printed_on),
                   Text(caption_of(exhibit, workspace), small=True)]
    if exhibit.blocks:
        blocks += exhibit.blocks(workspace)
    if exhibit.check:
        blocks += _relation(exhibit, workspace)
    for claim in exhibit.claims:
        blocks += verdict_blocks(judge(claim, workspace))
    return blocks


def table_of(cells: Sequence[Cell], workspace: Workspace, printed_on: str = "") -> Grid:
    """Rows and columns as the cells say; under each column the paper's number, then ours.

    Args:
        cells: of the table.
        workspace: where the runs are.
        printed_on: the paper's dataset, where it is another one than ours.
    """
    columns = list(dict.fromkeys(cell.column for cell in cells))
    rows: dict[tuple[str, ...], dict[tuple[str, ...], Cell]] = {}
    for cell in cells:
        rows.setdefault(cell.row, {})[cell.column] = cell
    depth = max(len(row) for row in rows)
    head = [""] * depth
    for column in columns:
        ours_beside = [workspace.scale.dataset_beside(part) or part for part in column]
        paper = f"paper ({printed_on})" if printed_on else "paper"
        head += [f"{', '.join(column)}: {paper}", f"{', '.join(ours_beside)}: here"]
    lines = []
    for row, found in rows.items():
        line = [*row, *[""] * (depth - len(row))]
        for column in columns:
            here = found.get(column)
            line += [printed(here.published, here.published_digits), ours(here, workspace)] if here else ["", ""]
        lines.append(line)
    keep = [i for i in range(len(head)) if i < depth or any(line[i] not in ("", NOTHING) for line in lines)]
    return Grid([head[i] for i in keep], [[line[i] for i in keep] for line in lines])


def printed(value: Value | None, digits: int) -> str:
    """The paper's number."""
    if value is None:
        return NOTHING
    error = "" if value.error is None else f" ± {value.error:.{digits}f}"
    return f"{value.mean:.{digits}f}{error}{value.mark}"


def ours(cell: Cell, workspace: Workspace) -> str:
    """Our number: the mean over seeds with its standard error over tasks, and each seed's mean and chosen rate."""
    found = [value for value in (number.of(workspace) for number in cell.numbers) if value is not None]
    if not found:
        return NOTHING
    together = mean_over_seeds(found)
    text = f"{together.mean:.{cell.digits}f} ± {together.error:.{cell.digits}f}"
    rates = [f" at rate {value.rate:g}" if value.rate is not None else "" for value in found]
    if len(found) == 1:
        return f"{text}{rates[0]}"
    each = ", ".join(f"{value.mean:.{cell.digits}f}{rate}" for value, rate in zip(found, rates, strict=True))
    return f"{text} ({each})"


def mean_over_seeds(found: Sequence[Measured]) -> Measured:
    """The mean of several trainings on the same tasks; its error is that over tasks."""
    first = found[0]
    values = np.mean([value.values for value in found], axis=0)
    return Measured.of(values, first.unit, first.seed, first.protocol, first.fingerprint)


def protocol_of(cells: Sequence[Cell], workspace: Workspace) -> str:
    """How BatchNorm behaved and networks were adapted: once for the whole table, or for each column or row."""
    by_place: dict[str, dict[str, dict[str, None]]] = {"column": {}, "row": {}}
    for cell in cells:
        for value in (number.of(workspace) for number in cell.numbers):
            if value is not None:
                by_place["column"].setdefault(", ".join(cell.column), {})[value.protocol] = None
                by_place["row"].setdefault(cell.row[0], {})[value.protocol] = None
    all_of_them = dict.fromkeys(protocol for found in by_place["row"].values() for protocol in found)
    if len(all_of_them) < 2:
        return "".join(f"BatchNorm in the whole table: {protocol}." for protocol in all_of_them)
    kind = "column" if all(len(found) == 1 for found in by_place["column"].values()) else "row"
    places: dict[str, list[str]] = {}
    for place, found in by_place[kind].items():
        places.setdefault(" or ".join(found), []).append(place)
    return f"BatchNorm by {kind}: " + ". ".join(f"{', '.join(all_)}: {what}" for what, all_ in places.items()) + "."


def caption_of(exhibit: Exhibit, workspace: Workspace) -> str:
    """Scale, data, seeds, tasks and time behind a table; the protocol stands above it."""
    cells = exhibit.cells
    all_of_them = (number.of(workspace) for cell in cells for number in cell.numbers)
    found = [value for value in all_of_them if value is not None]
    names = dict.fromkeys(number.run for cell in cells for number in cell.numbers)
    seeds = ", ".join(map(str, sorted({run.seed for run in names})))
    data = ", ".join(sorted({run.dataset for run in names}))
    amounts = dict.fromkeys(f"{value.count:,} {value.unit}" for value in found)
    few_shot = any(isinstance(number.measurement, Accuracy | Tuned) for cell in cells for number in cell.numbers)
    kind = f", {Accuracy.ways}-way with {Accuracy.queries} queries a class" if few_shot else ""
    several = any(len(cell.numbers) > 1 for cell in cells)
    spread = " In brackets each seed's own mean; ± knows nothing of the spread between trainings." if several else ""
    marks = {cell.published.mark for cell in cells if cell.published is not None}
    draws = ", ".join(str(seed) for seed in sorted({value.seed for value in found}))
    minutes = sum(_minutes(run, workspace) for run in names)
    return " ".join([
        f"Scale {workspace.scale.name} ({workspace.scale.about}); {data}{kind}; training seeds {seeds}; "
        f"{' or '.join(amounts) or 'nothing measured yet'}; drawn with seed {draws or NOTHING}; "
        f"trained in {minutes:.1f} minutes.{spread}",
        *exhibit.notes,
        *(meaning for mark, meaning in MARKS.items() if mark in marks),
    ])


def _minutes(run: RunName, workspace: Workspace) -> float:
    return runs.RunFolder(workspace.run_dir(run)).training_results().get("seconds", 0.0) / 60


def _relation(exhibit: Exhibit, workspace: Workspace) -> list[Block]:
    """r_hv beside 4 r_fc / (4 + r_fc), which it follows if both are measured honestly.

    At the mean r_fc, as printed numbers can be checked, and averaged over the pairs themselves, which is sharper.
    """
    rows = []
    for name, r_fc, r_hv in exhibit.check:
        fc, hv = r_fc.of(workspace), r_hv.of(workspace)
        if fc is not None and hv is not None:
            of_means, of_pairs = 4 * fc.mean / (4 + fc.mean), float(np.nanmean(4 * fc.values / (4 + fc.values)))
            rows.append([name, f"{fc.mean:.3f} ± {fc.error:.3f}", f"{hv.mean:.3f} ± {hv.error:.3f}",
                         *(f"{value:.3f} ({100 * (hv.mean / value - 1):+.1f} %)" for value in (of_means, of_pairs))])
    if not rows:
        return []
    text = (
        "Check: r_hv should be near 4 r_fc / (4 + r_fc); the paper's own rows are within 6 %. The curve is concave: the"
        " more r_fc differs from pair to pair, the further r_hv falls below its value at the mean; averaged over the "
        "same pairs the two must agree. In brackets what r_hv is off by."
    )
    head = ["extractor, classes", "r_fc", "r_hv", "at the mean r_fc", "averaged over pairs"]
    return [Text(text), Grid(head, rows)]


def verdict_blocks(verdict: Verdict) -> list[Block]:
    """A claim, whose it is, its verdict here and in the paper's numbers, and the differences they rest on."""
    claim, outcome = verdict.claim, verdict.outcome if verdict.claim.measurable else NOT_MEASURED
    name = f"Claim ({claim.source})" if claim.section else "Question (this project's own, not the paper's)"
    blocks: list[Block] = [Text(
        f"{name}: {claim.text} Verdict: {outcome.upper()}. The same rule on the paper's printed numbers: "
        f"{verdict.of_paper.upper()}."
    )]
    seeds = sorted(seed for seed, found in verdict.differences.items() if found)
    if seeds or verdict.printed:
        by_seed = {seed: {found.name: found for found in verdict.differences[seed]} for seed in seeds}
        of_paper = {found.name: found for found in verdict.printed}
        over = {found.name: found for found in verdict.over_trainings}
        rows = [
            [each.name, *([_difference(over.get(each.name))] if over else []),
             *(_difference(by_seed[seed].get(each.name), verdict.has_effect(seed)) for seed in seeds),
             _difference(of_paper.get(each.name))]
            for each in claim.comparisons
        ]
        rows.append(["verdict", *([verdict.outcome] if over else []), *(verdict.of_seed(seed) for seed in seeds),
                     verdict.of_paper])
        counts = {found.trainings for found in over.values()}
        trainings = [f"over {max(counts)} training{'s' if max(counts) > 1 else ''}"] if over else []
        head = ["difference (interval)", *trainings, *(f"seed {seed}, over tasks" for seed in seeds)]
        blocks.append(Grid([*head, "the paper's numbers"], rows))
    return blocks


def _difference(found: Difference | OverTrainings | Printed | None, judged: bool = True) -> str:
    if found is None:
        return NOTHING
    outcome = UNDECIDED if isinstance(found, Printed) and found.outcome == OPEN else found.outcome
    return f"{found}: {outcome}" if judged else str(found)


def verdict_table(verdicts: Iterable[Verdict]) -> Grid:
    """All claims in one table."""
    rows = [
        [verdict.claim.text, verdict.claim.source, verdict.outcome if verdict.claim.measurable else NOT_MEASURED,
         ", ".join(f"{seed}: {verdict.of_seed(seed)}" for seed in sorted(verdict.differences)) or NOT_MEASURED,
         verdict.of_paper]
        for verdict in verdicts
    ]
    head = ["claim", "whose", "here", "each training, over its tasks", "the same rule on the paper's numbers"]
    return Grid(head, rows)
