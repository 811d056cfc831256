"""The report from end to end at the smoke scale, and again from what is there.

`make test-report` runs the long tests.
"""

import json
import re
import time

import pytest

from tests.reproduction.fakes import SCALE, finish, put, workspace
from tests.reproduction.test_document import Tags
from tf_unravel import cli
from tf_unravel.reproduction.exhibits.exhibit import Cell
from tf_unravel.reproduction.exhibits.figures import FIGURES
from tf_unravel.reproduction.exhibits.tables import TABLES
from tf_unravel.reproduction.jobs import jobs
from tf_unravel.reproduction.jobs.measurements import Accuracy
from tf_unravel.reproduction.report import rendering, report


@pytest.mark.long
def test_the_whole_report_is_made_from_nothing(smoke):
    page, text = ((smoke[0] / "report" / name).read_text() for name in ("report.html", "report.md"))
    for name in (*TABLES, *FIGURES):
        title = f"{name[:-1].capitalize()} {name[-1]}: "
        assert title in page and title in text
    assert "Not measured yet" not in text and "failed" not in text and "not done" not in text
    tags = Tags()
    tags.feed(page)
    assert not tags.open and tags.seen.count("img") == 5
    assert all(link.startswith("data:image/png;base64,") for link in tags.links)
    for name in FIGURES:
        for kind in ("png", "svg"):
            assert (smoke[0] / "report" / "figures" / f"{name}.{kind}").stat().st_size > 5000
    assert any((smoke[0] / "report" / "tensorboard").iterdir())


@pytest.mark.long
def test_the_question_of_the_first_screen_is_answered_there(smoke):
    text = (smoke[0] / "report" / "report.md").read_text()
    first = text[: text.index("## Every claim")]
    assert "Does R_FC help, by how much, and at what cost?" in first
    assert "percentage points" in first and "times a classical one" in first


@pytest.mark.long
def test_what_must_be_said_beside_numbers_is(smoke):
    text = (smoke[0] / "report" / "report.md").read_text()
    sections = {re.split(r"[:\n]", part)[0]: part for part in text.split("\n## ")}
    assert "this project's own, not the paper's): Every meta-trained extractor" in sections["Table 6"]
    assert "paper's printed numbers: DOES NOT HOLD" in sections["Table 6"]
    assert "paper's printed numbers: HOLDS" in sections["Table 1"]
    for name in ("Table 1", "Table 6"):
        assert "BatchNorm by column: SVM, RR, ProtoNet: inductive" in sections[name]
        assert sections[name].count(" at rate 0.01 |") + sections[name].count(" at rate 0.1 |") == 4
    assert "BatchNorm in the whole table: transductive" not in sections["Table 5"]  # inner loops differ by row
    assert "BatchNorm by row: " in sections["Table 5"] and "one by one" not in sections["Table 5"]
    assert "48.07 ± 1.75*" in sections["Table 5"] and "* copied by the paper" in sections["Table 5"]
    assert "THE COEFFICIENT HAS NO EFFECT" in sections["Figure 3"] and "HOLDS" not in sections["Figure 3"]
    assert "R_FC 0.05 (whole batch, as printed)" in sections["Table 3"] and "R_HV 0.05 (as printed)" in sections["Runs"]


@pytest.mark.long
def test_the_same_command_again_runs_nothing(smoke, capsys):
    before = {path: path.stat().st_mtime_ns for path in smoke[0].glob("glyphs/**/*") if path.is_file()}
    began = time.monotonic()
    assert cli.main(smoke[1]) == 0
    assert time.monotonic() - began < 30
    assert {path: path.stat().st_mtime_ns for path in smoke[0].glob("glyphs/**/*") if path.is_file()} == before
    assert " left\n" not in capsys.readouterr().out


@pytest.mark.long
def test_one_table_on_the_terminal(smoke, capsys):
    assert cli.main(["paper", "table3", "--scale=smoke", f"--run_dir={smoke[0]}"]) == 0
    out = capsys.readouterr().out
    assert "65.50 ± 0.40" in out and "Verdict: " in out and "50 tasks" in out


@pytest.mark.long
def test_a_failed_run_is_shown_and_the_rest_goes_on(smoke, capsys):
    run = next((smoke[0] / "glyphs").glob("protonet@conv4/seed-0"))
    before = (run / "config.gin").read_text()
    (run / "config.gin").write_text(before.replace("run.epochs = 1", "run.epochs = 2"))
    try:
        assert cli.main(smoke[1]) == 1
    finally:
        (run / "config.gin").write_text(before)
    assert "glyphs/protonet@conv4/seed-0 failed" in capsys.readouterr().out
    assert "failed: --run_dir" in (smoke[0] / "report" / "report.md").read_text()


@pytest.mark.long
def test_the_plan_as_json_lines(smoke, capsys):
    arguments = ["paper", "plan", "--scale=smoke", f"--run_dir={smoke[0]}", "--seeds=0,1", "--format=jsonl"]
    assert cli.main(arguments) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["left"] == [] for line in lines if line["job"].endswith("seed-0")} == {True}
    assert all(line["command"].endswith(f"--job {line['job']}") for line in lines)


@pytest.mark.parametrize(("arguments", "message"), [
    (["report", "--scale=big"], "--scale is one of"),
    (["table10", "--scale=smoke"], "exhibits are summary, table1"),
    (["run", "--scale=smoke", "--job=nothing"], "--job is one of"),
    (["report", "--scale=smoke", "--root=glyphs"], "--root is DATASET=FOLDER"),
    (["report", "--scale=smoke", "--processes=0"], "--processes"),
])
def test_bad_arguments_are_one_line(arguments, message, capsys, tmp_path):
    assert cli.main(["paper", *arguments, f"--run_dir={tmp_path}"]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


PROTOCOLS = {
    "one": (["inductive"] * 4, "BatchNorm in the whole table: inductive."),
    "columns": (["a", "b", "a", "b"], "BatchNorm by column: left: a. right: b."),
    "rows": (["a", "a", "b", "b"], "BatchNorm by row: first: a. second: b."),
}


@pytest.mark.parametrize("case", PROTOCOLS)
def test_the_protocol_is_said_once_or_by_column_or_by_row(case):
    protocols, said = PROTOCOLS[case]

    class Fake:
        def __init__(self, protocol):
            self.protocol, self.run = protocol, None

        def of(self, _):
            return self

    places = [(row, column) for row in ("first", "second") for column in ("left", "right")]
    cells = [Cell((row,), (column,), None, (Fake(protocol),))
             for (row, column), protocol in zip(places, protocols, strict=True)]
    assert rendering.protocol_of(cells, None) == said


def test_the_table_of_runs_names_the_commit_of_each(tmp_path):
    there = workspace(tmp_path)
    (table3,) = report.exhibits(SCALE, (0, 1), ("table3",))
    first, *others = (job.run for job in jobs.plan([table3], SCALE))
    finish(there.run_dir(first))
    (there.run_dir(first) / "environment.json").write_text('{"starts": [{"commit": "abc1234"}, {"commit": "def5678"}]}')
    grid = report._runs(there, [table3], {}, "tf-unravel paper report")[-1]
    commits = {row[0]: row[-1] for row in grid.rows}
    assert grid.head[-1] == "commit" and commits == {str(first): "abc1234", **{str(run): "–" for run in others}}


def test_a_cell_of_several_seeds_shows_each_and_the_error_over_tasks(tmp_path):
    there = workspace(tmp_path)
    (table3,) = report.exhibits(SCALE, (0, 1), ("table3",))
    (cell,) = [c for c in table3.cells if c.row[0] == "Classical" and c.column[-1] == "1-shot"]
    for number, values in zip(cell.numbers, ([0.4, 0.5, 0.6, 0.5], [0.6, 0.5, 0.4, 0.7]), strict=True):
        put(there.run_dir(number.run), Accuracy("svm", 1, 4), accuracy=values)
    # Task means over the seeds: 50, 50, 50, 60: mean 52.5, standard error 5 / sqrt(4)
    assert rendering.ours(cell, there) == "52.50 ± 2.50 (50.00, 55.00)"
    caption = rendering.protocol_of(table3.cells, there) + rendering.caption_of(table3, there)
    for words in ("Scale fake", "toy", "training seeds 0, 1", "4 tasks", "drawn with seed 0", "inductive", "minutes"):
        assert words in caption
