"""The report: every exhibit with its verdicts, as one HTML page and one Markdown file with their figures."""

from __future__ import annotations

import datetime
import io
import pathlib
from collections.abc import Mapping, Sequence

from tf_unravel import runs
from tf_unravel.files import write_bytes, write_text
from tf_unravel.reproduction.exhibits.claims import LEAST_TRAININGS, Verdict, judge
from tf_unravel.reproduction.exhibits.exhibit import Exhibit
from tf_unravel.reproduction.exhibits.figures import FIGURES
from tf_unravel.reproduction.exhibits.interpolation import interpolation
from tf_unravel.reproduction.exhibits.originals import originals
from tf_unravel.reproduction.exhibits.penalty import LEAST_RATIO
from tf_unravel.reproduction.exhibits.summary import summary
from tf_unravel.reproduction.exhibits.tables import TABLES
from tf_unravel.reproduction.jobs import jobs
from tf_unravel.reproduction.jobs.scales import Scale
from tf_unravel.reproduction.jobs.workspace import Workspace
from tf_unravel.reproduction.report import document
from tf_unravel.reproduction.report.answer import answer
from tf_unravel.reproduction.report.document import Block, Code, Grid, Heading, Image, Text
from tf_unravel.reproduction.report.rendering import NOTHING, blocks_of, verdict_table
from tf_unravel.runs.folder import versions
from tf_unravel.runs.logs import event_writer, log_figure

BUILDERS = {"summary": summary, **TABLES, **FIGURES, "originals": originals, "interpolation": interpolation}

_RULE = (
    "The verdict is over trainings: a claim holds if Student's interval of the mean of the trainings' differences "
    "lies on its side of zero for every comparison, does not hold if one lies wholly on the other side, and is not "
    f"decided otherwise; fewer than {LEAST_TRAININGS} trainings decide nothing. A training's difference is paired, "
    "over the same tasks under both sides; beside it stands its interval over tasks, which says nothing about the "
    "spread between trainings. Intervals share 95 % among the comparisons of a claim. To the paper's printed numbers "
    "the same rule is applied with unpaired intervals from its two standard errors, which are wider than paired ones;"
    " where it prints no errors the interval is what rounding leaves open. The paper's comparisons include those that"
    f" this scale has no runs for. There is no verdict on a penalty whose gradient was smaller than {LEAST_RATIO:g} of"
    " the loss's."
)


def exhibits(scale: Scale, seeds: Sequence[int], names: Sequence[str] = ()) -> list[Exhibit]:
    """The exhibits of these names at a scale; all for none.

    Args:
        scale: the scale.
        seeds: of the trainings.
        names: among BUILDERS; without any, those that the scale has a training for.

    Raises:
        ConfigError: an unknown name.
    """
    unknown = [name for name in names if name not in BUILDERS]
    if unknown:
        raise runs.ConfigError(f"exhibits are {', '.join(BUILDERS)}. Received: {', '.join(unknown)}")
    built = [build(scale, tuple(seeds)) for name, build in BUILDERS.items() if not names or name in names]
    return [exhibit for exhibit in built if names or not exhibit.empty]


def write(
    workspace: Workspace, chosen: Sequence[Exhibit], seeds: Sequence[int], out: pathlib.Path, command: str,
    failures: Mapping[str, str],
) -> list[Verdict]:
    """Writes report.html, report.md and figures/ from what has been measured.

    Args:
        workspace: where the runs are.
        chosen: the exhibits.
        seeds: of the trainings.
        out: the folder.
        command: that made it.
        failures: job -> why it failed.

    Returns:
        The verdicts.
    """
    out.mkdir(parents=True, exist_ok=True)
    verdicts = [judge(claim, workspace) for exhibit in chosen for claim in exhibit.claims]
    blocks: list[Block] = [
        Heading("Unraveling Meta-Learning, measured again", 1),
        *answer(verdicts), *_about(workspace, seeds), Heading("Every claim, and whose it is"), verdict_table(verdicts),
        Text(_RULE, small=True),
    ]
    for exhibit in chosen:
        blocks += [*blocks_of(exhibit, workspace), *_figures(exhibit, workspace, out)]
    blocks += _runs(workspace, chosen, failures, command)
    for name, text in (("report.md", document.markdown(blocks)), ("report.html", document.page(blocks))):
        write_text(out / name, text)
    return verdicts


def exhibit_text(exhibit: Exhibit, workspace: Workspace) -> str:
    """One exhibit for a terminal."""
    texts = []
    for block in blocks_of(exhibit, workspace):
        texts.append(document.plain(block) if isinstance(block, Grid) else block.text)
    return "\n\n".join(texts)


def draw(exhibit: Exhibit, workspace: Workspace, out: pathlib.Path) -> dict[pathlib.Path, tuple[bytes, str]]:
    """Draws an exhibit's figures as PNG, SVG and to TensorBoard.

    Returns:
        Path of a PNG -> (its bytes, its caption).
    """
    if exhibit.draw is None:
        return {}
    (out / "figures").mkdir(parents=True, exist_ok=True)
    writer = event_writer(out / "tensorboard")
    drawn = {}
    for drawing in exhibit.draw(workspace):
        path = out / "figures" / f"{drawing.name}.png"
        png = log_figure(writer, f"paper/{drawing.name}", drawing.figure, 0)
        svg = io.BytesIO()
        drawing.figure.savefig(svg, format="svg")
        for file, content in ((path, png), (path.with_suffix(".svg"), svg.getvalue())):
            write_bytes(file, content)
        drawn[path] = png, drawing.caption
    return drawn


def _figures(exhibit: Exhibit, workspace: Workspace, out: pathlib.Path) -> list[Block]:
    blocks: list[Block] = []
    for path, (png, caption) in draw(exhibit, workspace, out).items():
        blocks += [Image(str(path.relative_to(out)), png, caption), Text(caption, small=True)]
    if exhibit.draw and not blocks:
        blocks = [Text("Not measured yet.", small=True)]
    return blocks


def _about(workspace: Workspace, seeds: Sequence[int]) -> list[Block]:
    made = versions()
    data = ", ".join(f"{ours} beside the paper's {theirs}" for ours, theirs in workspace.scale.datasets.items())
    networks = ", ".join(f"{role}: {here}" for role, here in workspace.scale.networks.items())
    return [Text(
        f"Scale {workspace.scale.name}: {workspace.scale.about}. Data: {data}. Networks ({networks}). Training seeds "
        f"{', '.join(map(str, seeds))}. tf_unravel {made['tf_unravel']}, TensorFlow {made['tensorflow']}, Keras "
        f"{made['keras']}, Python {made['python']}, {made['device']}; {datetime.date.today().isoformat()}."
    )]


def _runs(workspace: Workspace, chosen: Sequence[Exhibit], failures: Mapping[str, str], command: str) -> list[Block]:
    """What was run, how long it took, and what failed."""
    rows = []
    for job in jobs.plan(chosen, workspace.scale):
        name, state, minutes, steps, penalty, commit = str(job), "done", *[NOTHING] * 4
        if isinstance(job, jobs.RunJob):
            penalty = workspace.scale.penalty(job.run) or NOTHING
            folder = runs.RunFolder(workspace.run_dir(job.run))
            commit = folder.commit() or NOTHING
            if training := folder.training_results():
                minutes = f"{training['seconds'] / 60:.1f}"
                steps = f"{training['step']:,} of {training['total_steps']:,}"
        if name in failures:
            state = f"failed: {failures[name]}"
        else:
            left = jobs.left_of(job, workspace)
            state = f"not done: {', '.join(left)}" if left else "done"
        rows.append([name, penalty, state, steps, minutes, commit])
    alone = command.replace("paper report", "paper run")
    text = "All of this by the first command, one run by the second. Its folder holds configuration, versions and logs."
    return [Heading("Runs"), Text(text), Code(f"{command}\n{alone} --job NAME"),
            Grid(["run", "penalty", "state", "steps", "minutes of training", "commit"], rows)]

