"""Trained extractors by name: the same network as the run that was shipped, and nothing is written where they lie."""

import dataclasses
import json
import pathlib
import zipfile

import numpy as np
import pytest

import tf_unravel as tu
from tf_unravel import cli, runs
from tf_unravel.reproduction.jobs import extractors, scales
from tf_unravel.reproduction.jobs.jobs import RunJob
from tf_unravel.reproduction.jobs.measurements import Accuracy
from tf_unravel.reproduction.jobs.workspace import Workspace
from tf_unravel.runs import shipped
from tf_unravel.runs.checkpoints import Checkpoints

MOST_BYTES = 5 << 20
WANTED = (Accuracy("svm", 1, 6), Accuracy("own", 1, 4, (), 5, 3))
# Reptile is named, and never trained
EXTRACTORS = {"glyphs_classical": "classical@conv4", "glyphs_maml": "fomaml_1@conv4", "glyphs_reptile": "reptile@conv4"}
FEW = ["--shots=1", "--tasks=6", "--queries=5"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A classical run whose checkpoints hold moving averages, and one of MAML, trained for a few steps and measured."""
    smoke = scales.load("smoke")
    few = ("ClassPairs.batch_size = 80", "Validation.every_epochs = 1", "Validation.num_tasks = 4",
           "Validation.queries = 3", "Validation.projection_every = 0")  # fmt: skip
    trainings = {**smoke.runs, "classical@conv4": (*smoke.runs["classical@conv4"], "sgd.ema_momentum = 0.9")}
    scale = dataclasses.replace(smoke, runs=trainings, bindings=(*smoke.bindings, *few), extractors=EXTRACTORS)
    return Workspace(tmp_path_factory.mktemp("runs"), scale)


@pytest.fixture(scope="module")
def plan(workspace):
    named = [scale_run(workspace, name) for name in EXTRACTORS]
    plan = [RunJob(run, WANTED) for run in named]
    for job in plan[:2]:
        for _, function, arguments in job.parts(workspace):
            function(*arguments)
    environment = workspace.run_dir(plan[0].run) / "environment.json"
    recorded = json.loads(environment.read_text())
    recorded["starts"][0] |= {"command": ["/home/somebody/tf-unravel", "--x=/home/somebody"], "commit": "abc1234"}
    environment.write_text(json.dumps(recorded))
    return plan


def scale_run(workspace, name):
    method, network = EXTRACTORS[name].split("@")
    return workspace.scale.run(workspace.scale.home_beside, method, network, 0)


@pytest.fixture(scope="module")
def written(workspace, plan, tmp_path_factory):
    out = tmp_path_factory.mktemp("package") / "trained"
    return out, extractors.write(plan, workspace, out)


@pytest.fixture
def folder(written, monkeypatch):
    monkeypatch.setattr(shipped, "FOLDER", written[0])
    return written[0]


def files_in(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows_in(out: pathlib.Path) -> list[dict]:
    return [{**row, "run": ""} for row in json.loads((out / "evaluation.json").read_text())]


def test_what_is_there_is_written_and_what_is_not_is_said(written, plan):
    out, said = written
    assert sorted(path.name for path in out.iterdir()) == ["glyphs_classical", "glyphs_maml"]
    assert f"glyphs_reptile: not there yet, {plan[2].run}: training, measuring, fine-tuning" in said.splitlines()
    for name in ("glyphs_classical", "glyphs_maml"):
        assert sorted(files_in(out / name)) == [
            "card.json", "checkpoints/best.npz", "config.gin", "environment.json", "results.json"
        ]  # fmt: skip
    assert not any(b"somebody" in content for content in files_in(out).values())


def test_the_weights_are_those_of_the_checkpoint_without_the_optimizer(written, workspace, plan):
    for name, job in zip(EXTRACTORS, plan[:2], strict=False):
        run = runs.FinishedRun(workspace.run_dir(job.run))
        here = runs.FinishedRun(written[0] / name)
        assert here.step == run.step and here.checkpoint == run.checkpoint
        assert len(here.learner.variables) == len(run.learner.variables)
        for one, other in zip(here.learner.variables, run.learner.variables, strict=True):
            np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
        best = Checkpoints(written[0] / name / "checkpoints").best
        with zipfile.ZipFile(best) as archive:
            assert len(archive.namelist()) == len(run.learner.variables) + 1  # the facts
        with np.load(best) as file:
            assert {file[key].dtype for key in file.files if file[key].dtype.kind == "f"} == {np.dtype("float32")}


def test_the_card_says_what_it_is(written, workspace, plan):
    card = json.loads((written[0] / "glyphs_classical" / "card.json").read_text())
    backbone = runs.FinishedRun(written[0] / "glyphs_classical").backbone
    assert (card["name"], card["method"], card["network"]) == ("glyphs_classical", "classical", "conv4")
    assert card["parameters"] == backbone.count_params() and card["features"] == backbone.output_shape[-1]
    assert card["dataset"] == "glyphs" and set(card["fingerprints"]) == {"train", "val"}
    assert card["commit"] == "abc1234" and card["licence"] == "Apache-2.0" and card["seed"] == 0 and card["steps"] > 0
    assert card["command"] == "tf-unravel paper run --scale=smoke --seeds=0 --job=glyphs/classical@conv4/seed-0"
    environment = json.loads((written[0] / "glyphs_classical" / "environment.json").read_text())
    assert environment["data_root"] is None and environment["starts"][0]["command"] == ["tf-unravel", "--x=PATH"]
    assert card["date"] == environment["starts"][-1]["time"][:10]
    svm, own = card["accuracies"]
    said = [svm[name] for name in ("head", "ways", "shots", "queries", "tasks", "seed")]
    assert said == ["svm", 5, 1, 15, 6, 0]
    measured = json.loads((workspace.run_dir(plan[0].run) / "paper" / "accuracy_svm_1-shot.json").read_text())
    values = np.array(measured["values"]["accuracy"])
    assert svm["mean"] == pytest.approx(values.mean())
    assert svm["ci95"] == pytest.approx(1.96 * values.std(ddof=1) / np.sqrt(6))
    assert svm["protocol"] == measured["protocol"] and own["queries"] == 3


def test_by_name_from_python(folder, workspace, plan):
    assert tu.trained_names() == ["glyphs_classical", "glyphs_maml"]
    images = tu.data.load("glyphs", "test", images_per_class=2).images[:6]
    for name, job in zip(EXTRACTORS, plan[:2], strict=False):
        backbone = tu.trained(name)
        expected = runs.FinishedRun(workspace.run_dir(job.run)).backbone(images)
        np.testing.assert_array_equal(np.asarray(backbone(images)), np.asarray(expected))
        assert tu.trained(name) is not backbone


@pytest.mark.parametrize("name", ["glyphs_reptile", "../trained/glyphs_maml", ""])
def test_an_unknown_name_names_those_that_exist(folder, name, monkeypatch):
    with pytest.raises(ValueError, match=f"extractors are glyphs_classical, glyphs_maml. Received: '{name}'"):
        tu.trained(name)
    monkeypatch.setattr(shipped, "FOLDER", folder / "nowhere")
    with pytest.raises(ValueError, match="none in this installation"):
        tu.trained("glyphs_maml")


def test_the_command_line_gives_the_accuracy_of_the_run_to_the_last_digit(
    folder, workspace, plan, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    before = files_in(folder)
    originals = ",".join(str(workspace.run_dir(job.run)) for job in plan[:2])
    for heads in ("ridge,svm", "own"):
        arguments = ["evaluate", f"--heads={heads}", *FEW]
        assert cli.main([*arguments, f"--run_dir={originals}", f"--out={tmp_path / 'original'}"]) == 0
        assert cli.main([*arguments, "--trained=glyphs_classical,glyphs_maml"]) == 0
        assert rows_in(tmp_path / "trained") == rows_in(tmp_path / "original")
    assert "glyphs_maml" in (out := capsys.readouterr().out) and "2 steps of SGD" in out
    assert cli.main(["measure", "--trained=glyphs_maml", "--pairs=20"]) == 0
    assert (tmp_path / "trained" / "measurement.json").exists()
    assert files_in(folder) == before
    assert cli.main(["export", f"--run_dir={tmp_path / 'trained' / 'glyphs_maml'}", "--head=own", "--out=model"]) == 0
    assert "5-way 1-shot" in capsys.readouterr().out  # that of `evaluate`, from the copy's results.json


def test_another_run_in_the_place_of_the_copy_is_refused(folder, tmp_path, capsys):
    arguments = ["evaluate", "--trained=glyphs_maml", f"--out={tmp_path}", "--heads=ridge", *FEW]
    assert cli.main(arguments) == 0
    checkpoint = tmp_path / "glyphs_maml" / "checkpoints" / "best.npz"
    checkpoint.write_bytes((folder / "glyphs_classical" / "checkpoints" / "best.npz").read_bytes())
    capsys.readouterr()
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err
    assert "is not the trained extractor glyphs_maml" in error and error.count("\n") == 1


@pytest.mark.parametrize("command", ["evaluate", "measure"])
def test_runs_or_trained_extractors_and_not_both(command, capsys):
    for which, message in (([], "one of the arguments --run_dir --model --trained is required"),
                           (["--run_dir=a", "--trained=b"], "--trained: not allowed with argument --run_dir")):
        with pytest.raises(SystemExit, match="2"):
            cli.main([command, *which])
        assert capsys.readouterr().err.splitlines()[-1].endswith(message)


def test_a_scale_without_extractors_is_one_line(workspace, capsys, tmp_path):
    arguments = ["paper", "extractors", "--scale=smoke", f"--run_dir={workspace.folder}"]
    for more, message in (([f"--out={tmp_path}"], "the scale names no extractors"), ([], "give --out")):
        assert cli.main([*arguments, *more]) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_the_command_writes_nothing_where_nothing_is_trained(capsys, tmp_path):
    folders = [f"--run_dir={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}"]
    assert cli.main(["paper", "extractors", "--scale=cifar_fs", *folders]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8 and all(": not there yet, cifar_fs/" in line and "training" in line for line in lines)
    assert not (tmp_path / "out").exists()


def test_those_that_come_with_the_package_are_small_and_whole():
    shipped_here = pathlib.Path(tu.__file__).parent / "trained"
    assert sum(len(content) for content in files_in(shipped_here).values()) <= MOST_BYTES
    for name in tu.trained_names():
        card = json.loads((shipped_here / name / "card.json").read_text())
        assert tu.trained(name).count_params() == card["parameters"] and card["accuracies"] and card["commit"]
