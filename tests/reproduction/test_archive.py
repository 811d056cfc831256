"""Runs as one archive: the same report from it, nothing of the machine in it, and nothing lost where it is unpacked."""

import io
import json
import lzma
import pathlib
import tarfile

import pytest

from tests.reproduction.fakes import SCALE, finish, put, workspace
from tf_unravel import cli, runs
from tf_unravel.reproduction.exhibits import penalty
from tf_unravel.reproduction.jobs import archive, jobs
from tf_unravel.reproduction.jobs.jobs import RunJob, TimingJob
from tf_unravel.reproduction.report import report
from tf_unravel.runs import ConfigError

# What a run leaves on a machine, in every place that may name it
SECRET = "/home/somebody/images of mine"
COMMAND = ["/home/somebody/venv/bin/tf-unravel", "paper", "run", f"--run_dir={SECRET}", "--root", f"toy={SECRET}",
           f"--gin_bindings=load.root = '{SECRET}'", "--scale=desk", "~somebody/x", r"C:\Users\somebody\x",
           "gin/run/demo_classical.gin", "../here"]  # fmt: skip


def train(there, run) -> pathlib.Path:
    """Makes the folder of a finished training, as one leaves it."""
    run_dir = there.run_dir(run)
    finish(run_dir)
    results = json.loads((run_dir / "results.json").read_text())
    results["evaluation"] = [{"run": SECRET, "mean": 0.5}]  # a title where two runs have one name
    (run_dir / "results.json").write_text(json.dumps(results))
    (run_dir / "config.gin").write_text(runs.parse(*there.configuration(run)).text)
    start = {"time": "2026-01-01T00:00:00+00:00", "step": 0, "command": COMMAND, "commit": "abc1234"}
    (run_dir / "environment.json").write_text(json.dumps({"seed": run.seed, "data_root": SECRET, "starts": [start]}))
    (run_dir / "metrics.jsonl").write_text('{"train/pull": 0.25}\n{"train/pull": 0.5}\n{"train/pull": 0.75}\n')
    (run_dir / "checkpoints").mkdir()
    (run_dir / "checkpoints" / "best.npz").write_bytes(SECRET.encode())
    return run_dir


def measure(there, job: RunJob) -> None:
    for number, wanted in enumerate(job.wanted):
        shift = 0.01 * number + 0.1 * len(job.run.training)
        values = dict.fromkeys(("accuracy", "r_fc", "r_hv", "distance"), [0.4 + shift, 0.5 + shift, 0.6, 0.5])
        put(there.run_dir(job.run), wanted, **values, **({"rate": 0.1} if type(wanted).__name__ == "Tuned" else {}))


@pytest.fixture
def plan():
    return jobs.plan(report.exhibits(SCALE, (0, 1), ("table1", "table2", "table3", "table7")), SCALE)


@pytest.fixture
def there(tmp_path, plan):
    """All runs of a plan, trained and measured."""
    there = workspace(tmp_path / "runs")
    for job in plan:
        if isinstance(job, TimingJob):
            facts = {"seconds": [0.1, 0.2, 0.3], "steps_per_epoch": 2, "epochs": 3}
            times = {str(run): facts for run in job.timing.runs}
            content = {"runs": list(times), "rounds": 3, "device": "CPU", "times": times}
            job.timing.path(there).write_text(json.dumps(content))
        else:
            train(there, job.run)
            measure(there, job)
    return there


@pytest.fixture
def packed(there, plan, tmp_path):
    archive.pack(plan, there, tmp_path / "runs.tar.xz")
    return tmp_path / "runs.tar.xz"


def files_in(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def text_of(there, plan, out) -> str:
    report.write(there, report.exhibits(SCALE, (0, 1), ("table1", "table2", "table3", "table7")), (0, 1), out, "c", {})
    return (out / "report.md").read_text()


def test_the_report_of_an_unpacked_archive_is_the_same(there, plan, packed, tmp_path):
    elsewhere = workspace(tmp_path / "elsewhere")
    archive.unpack(packed, elsewhere.folder)
    assert not any(jobs.left_of(job, elsewhere) for job in plan)
    assert jobs.run(plan, elsewhere) == {}
    before, after = text_of(there, plan, tmp_path / "before"), text_of(elsewhere, plan, tmp_path / "after")
    assert before == after and "| abc1234 |" in after and "not done" not in after
    first = next(job.run for job in plan if isinstance(job, RunJob))
    assert penalty.gradient_ratio(elsewhere.run_dir(first)) == penalty.gradient_ratio(there.run_dir(first)) == 0.5
    assert runs.RunFolder(elsewhere.run_dir(first)).data_root() is None


def test_the_archive_is_small_the_same_again_and_says_nothing_of_the_machine(there, plan, packed, tmp_path):
    content = lzma.decompress(packed.read_bytes())
    for word in ("somebody", "images of mine", str(tmp_path), "checkpoints", "metrics"):
        assert word.encode() not in content
    for word in ('"tf-unravel"', '"--run_dir=PATH"', '"toy=PATH"', "load.root = 'PATH'", "gin/run/demo", '"../here"'):
        assert word.encode() in content
    with tarfile.open(packed) as opened:
        members = opened.getmembers()
    assert {(each.mtime, each.uid, each.gid, each.uname, each.gname, each.mode, each.isreg()) for each in members} == {
        (0, 0, 0, "", "", 0o644, True)
    }
    assert [each.name for each in members] == sorted(each.name for each in members)
    archive.pack(plan, there, tmp_path / "again.tar.xz")
    archive.unpack(packed, tmp_path / "elsewhere")
    archive.pack(plan, workspace(tmp_path / "elsewhere"), tmp_path / "thence.tar.xz")
    for name in ("again", "thence"):
        assert (tmp_path / f"{name}.tar.xz").read_bytes() == packed.read_bytes()
    assert packed.stat().st_size < 20_000


def test_only_finished_runs_of_this_configuration_are_packed(there, plan, tmp_path):
    first, second, third = (there.run_dir(job.run) for job in plan[:3])
    training = {"step": 3, "total_steps": 10, "best_step": 3, "seconds": 1.0}
    (first / "results.json").write_text(json.dumps({"training": training}))
    (second / "config.gin").write_text("run.epochs = 99\n")
    next((third / "paper").iterdir()).unlink()
    said = archive.pack(plan, there, tmp_path / "some.tar.xz")
    archive.unpack(tmp_path / "some.tar.xz", tmp_path / "elsewhere")
    states = [jobs.left_of(job, workspace(tmp_path / "elsewhere")) for job in plan]
    assert states[0] == states[1] == ["training", "measuring", "fine-tuning"][: len(states[0])]
    assert states[2] in (["measuring"], ["fine-tuning"]) and not any(states[3:])
    assert f"{len(plan) - 2} of {len(plan)} jobs" in said and f"configuration: {plan[0]}, {plan[1]}" in said


def test_what_is_there_is_never_changed(there, plan, packed, tmp_path):
    """The folder has a run that is trained on, one that is equal, one without a measurement; the others are missing."""
    elsewhere = workspace(tmp_path / "elsewhere")
    archive.unpack(packed, elsewhere.folder)
    in_training, equal, unmeasured, missing = (elsewhere.run_dir(job.run) for job in plan[:4])
    (in_training / "results.json").unlink()
    (in_training / "config.gin").write_text("mine")
    lacking = next((unmeasured / "paper").iterdir())
    lacking.unlink()
    equal.joinpath("metrics.jsonl").write_text('{"train/pull": 0.5}\n')
    for path in sorted(missing.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    missing.rmdir()
    before = files_in(elsewhere.folder)
    said = archive.unpack(packed, elsewhere.folder)
    after = files_in(elsewhere.folder)
    assert {name: after[name] for name in before} == before
    added = {elsewhere.folder / name for name in after.keys() - before.keys()}
    assert lacking in added and all(path == lacking or missing in path.parents for path in added)
    assert f"{plan[0]}: its training there is not finished, and was kept" in said and "runs unpacked: 1;" in said


@pytest.mark.parametrize("name", ["config.gin", "results.json", "environment.json", "paper", "timing"])
def test_a_finished_run_of_other_content_is_refused_before_anything_is_written(packed, plan, tmp_path, name):
    elsewhere = workspace(tmp_path / "elsewhere")
    archive.unpack(packed, elsewhere.folder)
    run_dir = elsewhere.run_dir(plan[-2].run)
    path = {"paper": next((run_dir / "paper").iterdir()), "timing": plan[-1].timing.path(elsewhere)}.get(
        name, run_dir / name
    )
    path.write_text(path.read_text().replace("0", "1"))
    removed = elsewhere.run_dir(plan[0].run)
    removed.rename(tmp_path / "removed")
    before = files_in(elsewhere.folder)
    with pytest.raises(ConfigError, match="has other content in the archive") as caught:
        archive.unpack(packed, elsewhere.folder)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert files_in(elsewhere.folder) == before


def evil(path: pathlib.Path, **attributes) -> pathlib.Path:
    member = tarfile.TarInfo("toy/classical@r2d2/seed-0/config.gin")
    member.size = 3
    for name, value in attributes.items():
        setattr(member, name, value)
    with tarfile.open(path, "w:xz") as opened:
        opened.addfile(member, io.BytesIO(b"abc"))
    return path


@pytest.mark.parametrize("attributes", [
    {"name": "../outside/classical@r2d2/seed-0/config.gin"},
    {"name": "toy/../../outside/config.gin"},
    {"name": "toy/classical@r2d2/../config.gin"},
    {"name": "/toy/timing@x/../../../../../outside.json"},
    {"name": "toy/classical@r2d2/seed-0/checkpoints/best.npz"},
    {"name": "toy/classical@r2d2/seed-0/paper/more/a.json"},
    {"name": "config.gin"},
    {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
    {"type": tarfile.SYMTYPE, "linkname": "results.json"},
    {"type": tarfile.LNKTYPE, "linkname": "results.json"},
    {"type": tarfile.FIFOTYPE},
], ids=str)  # fmt: skip
def test_what_pack_does_not_write_is_refused(attributes, tmp_path):
    path = evil(tmp_path / "evil.tar.xz", **attributes)
    with pytest.raises(ConfigError, match="is no archive of tf-unravel paper pack") as caught:
        archive.unpack(path, tmp_path / "runs")
    assert "\n" not in str(caught.value) and [each.name for each in tmp_path.iterdir()] == ["evil.tar.xz"]


@pytest.mark.parametrize("damage", ["cut", "text", "missing"])
def test_a_damaged_archive_is_one_line(damage, packed, tmp_path):
    content = packed.read_bytes()
    packed.unlink()
    if damage != "missing":
        packed.write_bytes(content[: len(content) // 2] if damage == "cut" else b"hello")
    with pytest.raises(ConfigError, match="or is damaged: ") as caught:
        archive.unpack(packed, tmp_path / "elsewhere")
    assert "\n" not in str(caught.value) and not (tmp_path / "elsewhere").exists()


def test_the_commands(tmp_path, capsys):
    arguments = ["--scale=smoke", f"--run_dir={tmp_path / 'runs'}", "--only=theorem1,table3"]
    for more, message in ((["pack", *arguments], "pack writes the archive: give --out"),
                          (["pack", *arguments, f"--out={tmp_path / 'a.tar.xz'}"], "has no finished run of the plan"),
                          (["pack", *arguments, f"--out={tmp_path / 'a.zip'}"], "ends in .tar.xz"),
                          (["unpack"], "takes one archive"), (["unpack", "a", "b"], "Received: a b"),
                          (["unpack", str(tmp_path / "a.tar.xz"), *arguments], "No such file")):  # fmt: skip
        assert cli.main(["paper", *more]) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
