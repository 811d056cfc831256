"""The command line from end to end, on a folder of small pictures."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.compat.proto import event_pb2

from tests.runs.test_training import bindings
from tf_unravel import cli, heads, runs
from tf_unravel.commands import reports


@pytest.fixture(scope="module")
def run_dirs(photographs, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for name in ("classical", "hyperplane_variation"):
        arguments = ["train", f"--run_dir={root / name}", "--gin_file=gin/data/image_folder.gin",
                     "--gin_file=gin/backbone/conv4.gin", f"--gin_file=gin/learner/{name}.gin"]
        lines = [line for line in bindings(photographs) if "Classical" not in line]
        assert cli.main([*arguments, *(f"--gin_bindings={line}" for line in lines)]) == 0
    return root


def both(run_dirs) -> str:
    return f"--run_dir={run_dirs / 'classical'},{run_dirs / 'hyperplane_variation'}"


def test_evaluate_prints_every_run_head_and_shot(run_dirs, tmp_path, capsys):
    arguments = ["evaluate", both(run_dirs), f"--out={tmp_path}", "--tasks=30", "--queries=5"]
    assert cli.main(arguments) == 0
    table = capsys.readouterr().out
    for word in ("classical", "hyperplane_variation", "prototypes", "ridge", "svm", "linear", "5-way 1-shot",
                 "5-way 5-shot", "30 tasks", "95 %", "BatchNorm: inductive", "test"):
        assert word in table
    rows = json.loads((tmp_path / "evaluation.json").read_text())
    assert len(rows) == 2 * 4 * 2
    assert {"run", "head", "shots", "mean", "standard_error", "ci95", "num_tasks", "batchnorm", "seed"} <= set(rows[0])
    own = json.loads((run_dirs / "classical" / "results.json").read_text())
    assert own["evaluation"] == [row for row in rows if row["run"] == "classical"] and "training" in own
    best = {(row["head"], row["shots"]): row["mean"] for row in rows if row["run"] == "classical"}
    assert best["prototypes", 5] > best["prototypes", 1] > 0.3


def test_figures_go_beside_the_table_into_the_runs_and_into_tensorboard(run_dirs, tmp_path, capsys):
    """Whoever looks at TensorBoard sees the same picture as in the run's folder."""
    shutil.copytree(run_dirs / "classical", tmp_path / "runs" / "classical")
    shutil.copytree(run_dirs / "classical", tmp_path / "runs" / "again")
    shutil.rmtree(tmp_path / "runs" / "again" / "tensorboard")
    both = f"--run_dir={tmp_path / 'runs' / 'classical'},{tmp_path / 'runs' / 'again'}"
    few = ["--heads=prototypes,ridge", "--tasks=100", "--ways=2", "--shots=1,2", "--queries=4", "--calibration"]
    for command, names in ((["evaluate", both, *few], ("accuracy", "confusion", "reliability")),
                           (["measure", both, "--pairs=50"], ("clustering", "lda"))):
        assert cli.main([*command, f"--out={tmp_path}"]) == 0
        said = capsys.readouterr().out.splitlines()
        assert [line for line in said if "Figure" in line] == [f"Figure: {tmp_path / name}_test.png" for name in names]
        for name in names:
            wide = (tmp_path / f"{name}_test.png").read_bytes()
            own = tmp_path / "runs" / "again" / "figures" / f"{name}_test.png"
            assert wide.startswith(b"\x89PNG") and own.read_bytes().startswith(b"\x89PNG") and own.read_bytes() != wide
    step = runs.FinishedRun(tmp_path / "runs" / "again").step
    logged = {}
    for path in (tmp_path / "runs" / "again" / "tensorboard").iterdir():
        for event in tf.data.TFRecordDataset(str(path)):
            event = event_pb2.Event.FromString(event.numpy())
            logged |= {value.tag: (event.step, value.tensor.string_val[2]) for value in event.summary.value}
    names = ("accuracy", "confusion", "reliability", "clustering", "lda")
    assert set(logged) == {f"test/{name}" for name in names}
    for name in names:
        own = tmp_path / "runs" / "again" / "figures" / f"{name}_test.png"
        assert logged[f"test/{name}"][0] == step
        pixels = [tf.image.decode_png(png, channels=3) for png in (logged[f"test/{name}"][1], own.read_bytes())]
        np.testing.assert_array_equal(*pixels)


def test_the_table_names_the_checkpoint_of_every_run(run_dirs, tmp_path, capsys):
    few = ["--heads=ridge", "--tasks=6", "--queries=5", f"--out={tmp_path}"]
    best = json.loads((run_dirs / "classical" / "results.json").read_text())["training"]["best_step"]
    assert cli.main(["evaluate", f"--run_dir={run_dirs / 'classical'}", *few]) == 0
    assert f"\ncheckpoint: best, step {best}\n" in capsys.readouterr().out
    assert cli.main(["evaluate", both(run_dirs), "--checkpoint=last", *few]) == 0
    assert "\ncheckpoint: last, step 24\n" in capsys.readouterr().out
    assert json.loads((tmp_path / "evaluation.json").read_text())[0]["checkpoint"] == "last, step 24"


def test_checkpoints_that_differ_are_named_by_run(run_dirs, tmp_path, capsys):
    shutil.copytree(run_dirs / "classical", tmp_path / "unwatched")
    (tmp_path / "unwatched" / "checkpoints" / "best.npz").unlink()
    both = f"--run_dir={run_dirs / 'classical'},{tmp_path / 'unwatched'}"
    assert cli.main(["evaluate", both, "--heads=ridge", "--tasks=6", "--queries=5", f"--out={tmp_path}"]) == 0
    table = capsys.readouterr().out
    assert "\ncheckpoint of classical: best, step " in table
    assert "\ncheckpoint of unwatched: last, step 24 (no validated checkpoint)\n" in table


@pytest.mark.parametrize(("command", "section", "few"), [
    ("evaluate", "evaluation", ["--heads=ridge", "--tasks=6", "--queries=5"]),
    ("measure", "measurement", ["--pairs=50"]),
])  # fmt: skip
def test_untrained_numbers_do_not_replace_trained_ones(command, section, few, run_dirs, tmp_path, capsys):
    run = f"--run_dir={run_dirs / 'classical'}"
    assert cli.main([command, run, f"--out={tmp_path}", *few]) == 0
    trained = json.loads((run_dirs / "classical" / "results.json").read_text())[section]
    figures = {path.name: path.read_bytes() for path in (run_dirs / "classical" / "figures").iterdir()}
    assert any(name.endswith("_test.png") for name in figures)
    assert cli.main([command, run, f"--out={tmp_path}", "--checkpoint=initial", *few]) == 0
    results = json.loads((run_dirs / "classical" / "results.json").read_text())
    assert results[section] == trained and results[f"{section}_initial"] != trained
    assert all((run_dirs / "classical" / "figures" / name).read_bytes() == png for name, png in figures.items())
    assert "\ncheckpoint: initial (untrained)" in capsys.readouterr().out


def test_help_names_every_head_and_the_defaults(capsys):
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert all(f" {name}" in said for name in (*heads.by_name, "own"))
    for default in ("default: prototypes,ridge,svm,linear", "default 5", "default 1,5", "default 2000"):
        assert default in said


@pytest.mark.parametrize("command", ["export", "serve"])
def test_every_command_with_a_head_names_them_all(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert ", ".join(heads.by_name) in said


def test_evaluate_twice_gives_the_same(run_dirs, tmp_path, capsys):
    arguments = ["evaluate", f"--run_dir={run_dirs / 'classical'}", f"--out={tmp_path}", "--tasks=20", "--queries=5"]
    tables = []
    for _ in range(2):
        cli.main(arguments)
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1]


def test_a_head_that_fails_loses_nothing_of_those_before_it(run_dirs, tmp_path, capsys):
    run = f"--run_dir={run_dirs / 'classical'}"
    diverging = ["--heads=fine_tune,ridge,prototypes", "--gin_bindings=FineTune.learning_rate = 1e39"]
    assert cli.main(["evaluate", run, f"--out={tmp_path}", "--tasks=6", "--queries=5", *diverging]) == 1
    assert "fine_tune" in capsys.readouterr().err
    kept = json.loads((run_dirs / "classical" / "results.json").read_text())["evaluation"]
    assert {(row["head"], row["num_tasks"]) for row in kept[-4:]} == {("ridge", 6), ("prototypes", 6)}


def test_a_second_evaluation_and_measurement_keep_what_the_first_found(run_dirs, tmp_path, capsys):
    shutil.copytree(run_dirs / "classical", tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    (tmp_path / "run" / "results.json").write_text(json.dumps({"training": results["training"]}))
    run, few = f"--run_dir={tmp_path / 'run'}", ["--queries=5", "--shots=1"]

    def rows(section):
        return json.loads((tmp_path / "run" / "results.json").read_text())[section]

    assert cli.main(["evaluate", run, *few, "--heads=ridge", "--tasks=20"]) == 0
    first = rows("evaluation")
    for more in (["--heads=svm", "--tasks=20"], ["--heads=ridge", "--tasks=6"], ["--heads=ridge", "--tasks=6"],
                 ["--heads=ridge", "--tasks=6", "--gin_bindings=Ridge.l2 = 7.0"],
                 ["--heads=ridge", "--tasks=6", "--split=val"], ["--heads=ridge", "--tasks=6", "--split=train"],
                 ["--heads=ridge", "--tasks=6", "--seed=1"]):
        assert cli.main(["evaluate", run, *few, *more]) == 0
    assert rows("evaluation")[:1] == first
    found = [(row["settings"], row["num_tasks"], row["split"].rpartition("/")[2], row["seed"])
             for row in rows("evaluation")]
    ridge = first[0]["settings"]
    assert found == [(ridge, 20, "test", 0), (rows("evaluation")[1]["settings"], 20, "test", 0),
                     (ridge, 6, "test", 0), ("ridge, l2 7", 6, "test", 0), (ridge, 6, "val", 0), (ridge, 6, "train", 0),
                     (ridge, 6, "test", 1)]
    capsys.readouterr()
    assert cli.main(["export", run, "--head=ridge", f"--out={tmp_path / 'model'}"]) == 0
    said = capsys.readouterr().out
    assert said.count("accuracy: 5-way 1-shot") == 4 and "/train" not in said  # those of classes new to it
    assert said.count(", images ") == 4  # of two splits
    for split in ("test", "val", "test"):
        assert cli.main(["measure", run, "--pairs=50", f"--split={split}"]) == 0
    assert [row["split"].rpartition("/")[2] for row in rows("measurement")] == ["val", "test"]


def test_a_row_takes_the_place_of_one_about_the_same_alone(tmp_path):
    folder = runs.RunFolder(tmp_path)
    same = {"run": 1, "checkpoint": 1, "mean": 1, "standard_error": 1, "ci95": 1}
    other = dict.fromkeys(("checkpoint_step", "split", "fingerprint", "seed", "head", "settings", "batchnorm",
                           "adaptation", "shots", "ways", "queries", "num_tasks"), 1)
    for change in ({}, *({key: 2} for key in same), *({key: 2} for key in other)):
        folder.add_results("evaluation", [{**same, **other, **change}], reports.TASKS)
    assert len(folder.evaluations()) == 1 + len(other)
    pairs = {"checkpoint_step": 1, "split": 1, "fingerprint": 1, "seed": 1, "num_pairs": 1}
    for change in ({}, {"r_fc": 2}, *({key: 2} for key in pairs)):
        folder.add_results("measurement", [{**pairs, "r_fc": 1, **change}], reports._PAIRS)
    assert len(json.loads((tmp_path / "results.json").read_text())["measurement"]) == 1 + len(pairs)


def test_measure_prints_and_draws(run_dirs, tmp_path, capsys):
    assert cli.main(["measure", both(run_dirs), f"--out={tmp_path}", "--pairs=500"]) == 0
    table = capsys.readouterr().out
    assert "r_fc" in table and "variance ratio" in table and "500 pairs" in table
    rows = json.loads((tmp_path / "measurement.json").read_text())
    assert 0 < rows[0]["r_hv"] <= 4 and rows[0]["r_fc"] > 0
    for path in (tmp_path / "lda_test.png", run_dirs / "classical" / "figures" / "lda_test.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_reading_a_run_leaves_its_training_log_alone(run_dirs, tmp_path):
    log = run_dirs / "classical" / "metrics.jsonl"
    before = log.read_bytes()
    for command in ("measure", "evaluate"):
        few = [] if command == "measure" else ["--tasks=10", "--queries=5"]
        assert cli.main([command, f"--run_dir={run_dirs / 'classical'}", f"--out={tmp_path}", *few]) == 0
    assert log.read_bytes() == before


def test_a_gin_binding_reaches_the_heads(run_dirs, tmp_path):
    means = []
    for l2 in ("1e-3", "1e9"):
        cli.main(["evaluate", f"--run_dir={run_dirs / 'classical'}", f"--out={tmp_path}", "--heads=linear",
                  "--tasks=50", "--queries=5", f"--gin_bindings=Linear.l2 = {l2}"])
        means.append(json.loads((tmp_path / "evaluation.json").read_text())[0]["mean"])
    assert means[0] != means[1]


def test_runs_of_one_name_are_told_apart(run_dirs, tmp_path, capsys):
    for seed in ("seed0", "seed1"):
        shutil.copytree(run_dirs / "classical", tmp_path / seed / "classical")
    both = f"--run_dir={tmp_path / 'seed0/classical'},{tmp_path / 'seed1/classical'}"
    assert cli.main(["evaluate", both, f"--out={tmp_path}", "--heads=ridge", "--tasks=10", "--queries=5"]) == 0
    assert cli.main(["measure", both, f"--out={tmp_path}", "--pairs=100"]) == 0
    assert capsys.readouterr().out.count(str(tmp_path / "seed1/classical")) == 2


@pytest.mark.parametrize("flag", ["--shots=", "--shots=1,1", "--shots=one", "--heads="])
def test_lists_that_make_no_sense_are_refused(flag, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["evaluate", "--run_dir=runs", flag])
    assert stopped.value.code == 2 and "Received" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--run_dir=absent"], "--run_dir absent holds no run; train it first (tf-unravel train"),
        (["measure", "--run_dir=absent"], "--run_dir absent holds no run"),
        (["train", "--run_dir=x", "--gin_file=nothing.gin"], "--gin_file nothing.gin: no such file"),
        (["train", "--run_dir=x"], "give --gin_file"),
    ],
)
def test_bad_input_is_one_line_and_a_status(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error
    assert not list(tmp_path.iterdir())


def test_an_unknown_head_is_named(run_dirs, capsys):
    assert cli.main(["evaluate", f"--run_dir={run_dirs / 'classical'}", "--heads=svm,forest"]) == 1
    known = "prototypes, ridge, svm, linear, fine_tune, own"
    assert f"--heads are among {known}. Received: forest" in capsys.readouterr().err


def test_impossible_tasks_are_refused_before_training(photographs, tmp_path, capsys):
    lines = [line for line in bindings(photographs, "Validation.ways = 20") if "Classical" not in line]
    arguments = ["train", f"--run_dir={tmp_path / 'run'}", "--gin_file=gin/data/image_folder.gin",
                 "--gin_file=gin/backbone/conv4.gin", "--gin_file=gin/learner/classical.gin"]
    assert cli.main([*arguments, *(f"--gin_bindings={line}" for line in lines)]) == 1
    assert "Received: ways=20, but split" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "evaluate", "measure", "export", "classify", "paper", "benchmark"])
def test_help_shows_an_example_and_needs_no_tensorflow(command):
    code = f"import sys; from tf_unravel import cli; cli.main(['{command}', '--help'])"
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and f"tf-unravel {command}" in done.stdout and "example:" in done.stdout
    assert "| tensorflow" not in done.stderr


def test_scripts_are_the_commands():
    done = subprocess.run([sys.executable, "scripts/evaluate.py", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "tf-unravel evaluate" in done.stdout


def test_from_a_run_to_an_answer(run_dirs, photographs, tmp_path, monkeypatch, capsys):
    """Evaluated, exported with what was measured, and used on pictures of classes that the run never saw."""
    monkeypatch.chdir(tmp_path)
    run = f"--run_dir={run_dirs / 'classical'}"
    assert cli.main(["evaluate", run, "--heads=ridge,svm", "--tasks=20", "--queries=5", "--ways=3", "--shots=1"]) == 0
    measured = json.loads((run_dirs / "classical" / "results.json").read_text())["evaluation"]
    (mine,) = (row for row in measured if (row["head"], row["ways"], row["num_tasks"]) == ("ridge", 3, 20))
    assert cli.main(["export", run, "--head=ridge", "--out=model", "--checkpoint=best"]) == 0
    said = capsys.readouterr().out
    assert f"accuracy: 3-way 1-shot {100 * mine['mean']:.2f} ± " in said and "20 tasks" in said
    card = json.loads((tmp_path / "model" / "tf_unravel.json").read_text())
    best = [row for row in measured if row["head"] == "ridge" and row["checkpoint_step"] == mine["checkpoint_step"]]
    assert mine in best and card["accuracies"] == best
    assert card["trained"]["learner"] == "Classical" and card["trained"]["dataset"] == "image_folder"
    assert "conv4.filters = 4" in card["trained"]["config"] and str(photographs) not in json.dumps(card)
    assert card["input"] == {"height": 16, "width": 16, "channels": 3, "pixels": "uint8, 0-255"}

    classify = ["classify", f"--query={photographs / 'test'}", "--model=model", f"--support={photographs / 'test'}"]
    assert cli.main(classify) == 0
    assert "of 120 images in folders named after a class" in capsys.readouterr().out
    rows = json.loads((tmp_path / "classification" / "classification.json").read_text())["pictures"]
    assert len(rows) == 120 and {row["class"] for row in rows} == {f"test{i}" for i in range(5)}
    assert sum(row["class"] == row["folder_class"] for row in rows) >= 100  # the labelled pictures themselves


_ACCURACY = {
    "checkpoint_step": 12, "settings": "ridge, l2 50", "batchnorm": "inductive (running statistics)",
    "adaptation": "", "ways": 5, "shots": 1, "mean": 0.5, "standard_error": 0.1, "ci95": 0.2, "num_tasks": 9,
    "split": "test", "queries": 15, "seed": 0,
}


def test_an_accuracy_measured_under_two_names_of_a_head_is_said_once(run_dirs, tmp_path, capsys):
    shutil.copytree(run_dirs / "classical", tmp_path / "run")
    training = json.loads((tmp_path / "run" / "results.json").read_text())["training"]
    rows = [{**_ACCURACY, "checkpoint_step": training["best_step"], "head": head} for head in ("own", "ridge")]
    (tmp_path / "run" / "results.json").write_text(json.dumps({"training": training, "evaluation": rows}))
    assert cli.main(["export", f"--run_dir={tmp_path / 'run'}", "--head=ridge", f"--out={tmp_path / 'model'}"]) == 0
    assert capsys.readouterr().out.count("accuracy: 5-way 1-shot") == 1


@pytest.mark.parametrize(("more", "why"), [
    (["--checkpoint=last"], "another step"), (["--gin_bindings=Ridge.l2 = 7.0"], "another head"),
    (["--checkpoint=initial"], "untrained"),
])  # fmt: skip
def test_accuracies_of_something_else_are_not_the_models(more, why, run_dirs, tmp_path, capsys):
    shutil.copytree(run_dirs / "classical", tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    row = dict(_ACCURACY)
    steps = {"best": results["training"]["best_step"], "last": 24}
    row["checkpoint_step"] = steps["best"] if "last" not in more[0] else steps["last"] - 1
    (tmp_path / "run" / "results.json").write_text(json.dumps({"training": results["training"], "evaluation": [row]}))
    export = ["export", f"--run_dir={tmp_path / 'run'}", "--head=ridge", f"--out={tmp_path / 'model'}"]
    assert cli.main([*export, *more]) == 0
    assert "accuracy: none was measured under this head at this checkpoint" in capsys.readouterr().out
    assert json.loads((tmp_path / "model" / "tf_unravel.json").read_text())["accuracies"] == []


def test_a_support_folder_is_built_in(run_dirs, photographs, tmp_path, capsys):
    out = f"--out={tmp_path / 'model'}"
    arguments = ["export", f"--run_dir={run_dirs / 'classical'}", "--head=own", out, "--gin_bindings=load.crop = True",
                 "--gin_bindings=load.bits = 12"]
    assert cli.main([*arguments, f"--support={photographs / 'test'}"]) == 0
    assert "classes: 'test0', 'test1', 'test2', 'test3', 'test4'" in capsys.readouterr().out
    card = json.loads((tmp_path / "model" / "tf_unravel.json").read_text())
    assert card["support_per_class"] == [24] * 5 and card["head"]["name"] == "linear"
    assert card["decoding"]["crop"] and card["decoding"]["bits"] == 12
    query = f"--query={photographs / 'test' / 'test1'}"
    assert cli.main(["classify", f"--model={tmp_path / 'model'}", query, f"--out={tmp_path / 'out'}"]) == 0
    assert capsys.readouterr().out.count(" test1 ") >= 20


@pytest.mark.parametrize(("arguments", "message"), [
    (["export", "--run_dir=absent", "--head=ridge", "--out=model"], "--run_dir absent holds no run; train it first"),
    (["classify", "--model=absent", "--query=more"], "absent does not exist"),
])  # fmt: skip
def test_bad_input_of_the_last_step_is_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error
    assert not list(tmp_path.iterdir())


def test_an_unknown_head_is_not_exported(run_dirs, tmp_path, capsys):
    run, out = f"--run_dir={run_dirs / 'classical'}", f"--out={tmp_path / 'model'}"
    assert cli.main(["export", run, "--head=forest", out]) == 1
    known = "prototypes, ridge, svm, linear, fine_tune, own"
    assert f"--head is among {known}. Received: forest" in capsys.readouterr().err
