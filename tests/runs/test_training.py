"""A run from start to end: what it writes, how it stops, and that resuming changes nothing."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from tf_unravel import cli, runs
from tf_unravel.data.sources import image_folder
from tf_unravel.runs import config
from tf_unravel.runs.training import TrainingDiverged

BINDINGS = (
    "run.epochs = 2",
    "ClassPairs.batch_size = 12",
    "ClassPairs.padding = 2",
    "conv4.filters = 4",
    "Validation.num_tasks = 10",
    "Validation.queries = 5",
    "Classical.weight_decay = 5e-4",
)


def bindings(photographs, *more: str) -> list[str]:
    return [f"load.root = '{photographs}'", "load.image_size = 16", *BINDINGS, *more]


def train(photographs, run_dir, *more: str):
    configuration = runs.parse(["data/image_folder.gin", "backbone/conv4.gin", "learner/feature_clustering.gin"],
                      bindings(photographs, *more))
    return runs.train(runs.plan(configuration), runs.RunFolder(run_dir), configuration)


def weights(run_dir) -> dict[str, np.ndarray]:
    path = runs.RunFolder(run_dir).checkpoints.newest_first()[0]
    with np.load(path) as file:
        return {name: file[name] for name in file.files if name != "facts"}


@pytest.fixture(scope="module")
def finished(photographs, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("run") / "whole"
    return run_dir, train(photographs, run_dir)


def test_a_run_folder_holds_what_the_contract_says(finished):
    run_dir, outcome = finished
    assert outcome.stopped_by is None and outcome.progress.step == outcome.total == 2 * 12
    for name in ("config.gin", "operative_config.gin", "environment.json", "metrics.jsonl", "results.json"):
        assert (run_dir / name).stat().st_size > 0
    assert list((run_dir / "tensorboard").glob("events*"))
    assert "FeatureClustering.coefficient = 0.05" in (run_dir / "config.gin").read_text()
    assert "FeatureClustering" in (run_dir / "operative_config.gin").read_text()
    environment = json.loads((run_dir / "environment.json").read_text())
    assert environment["seed"] == 0 and len(environment["data"]["train"]) == 64
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "val/1-shot" in line] == [12, 24]
    assert {"train/loss", "train/regularizer", "train/cross_entropy", "train/accuracy"} <= set(lines[0])
    assert [line["step"] for line in lines if line.get("train/images_per_second", 0) > 0] == [12, 24]
    training = json.loads((run_dir / "results.json").read_text())["training"]
    assert training["step"] == 24 and len(training["validations"]) == 2


def test_each_validation_looks_at_training_batches(finished):
    run_dir, _ = finished
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    looks = [line for line in lines if "val/1-shot" in line]
    assert len(looks) == 2
    for line in looks:
        assert line["at_validation/regularizer_gradient_share"] > 0
        assert 0 <= line["at_validation/train_accuracy"] <= 1 and line["at_validation/train_cross_entropy"] > 0
    validations = json.loads((run_dir / "results.json").read_text())["training"]["validations"]
    for line, validation in zip(looks, validations, strict=True):
        assert {name: validation[name] for name in line} == line


def test_training_learns(photographs, tmp_path):
    outcome = train(photographs, tmp_path / "run", "run.epochs = 12")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/cross_entropy"] for line in lines if "train/loss" in line]
    assert losses[-1] < 0.5 * losses[0]
    assert outcome.progress.best > 0.5


def test_stop_and_resume_is_bit_identical(photographs, tmp_path, finished, monkeypatch):
    whole, _ = finished
    run_dir = tmp_path / "stopped"
    seen = []
    original = runs.training._Loop._log

    def interrupt(self, values, bar):
        original(self, values, bar)
        seen.append(self.progress.step)
        if self.progress.step in (5, 17) and seen.count(self.progress.step) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(runs.training._Loop, "_log", interrupt)
    assert train(photographs, run_dir).stopped_by == signal.SIGTERM
    assert train(photographs, run_dir).progress.step == 17
    assert "same command" in str(train(photographs, run_dir)) or runs.RunFolder(run_dir).results.exists()
    expected, got = weights(whole), weights(run_dir)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(value, got[name])
    steps = [json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def test_validation_can_be_left_out(photographs, tmp_path):
    shutil.copytree(photographs / "train", tmp_path / "photographs" / "train")
    train(tmp_path / "photographs", tmp_path / "run", "Validation.every_epochs = 0", "run.epochs = 1")
    assert not runs.RunFolder(tmp_path / "run").checkpoints.best.exists()
    run = runs.FinishedRun(tmp_path / "run")
    assert run.step == 12 and run.checkpoint == "last, step 12 (no validated checkpoint)"


def test_the_start_says_what_it_waits_for_and_what_is_unusual(photographs, tmp_path, capsys):
    train(photographs, tmp_path / "plain", "run.epochs = 1", "Validation.every_epochs = 0")
    said = capsys.readouterr().err
    assert "compiling the first step" in said and "replica" not in said and "float" not in said
    configuration = runs.parse(["data/image_folder.gin", "backbone/conv4.gin", "learner/classical.gin"],
                      [line for line in bindings(photographs, "run.epochs = 1", "Validation.every_epochs = 0",
                                                 "run.dtype = 'mixed_bfloat16'")])
    try:
        runs.train(runs.plan(configuration), runs.RunFolder(tmp_path / "half"), configuration, runs.Devices("mirrored"))
    finally:
        keras.config.set_dtype_policy("float32")
    said = capsys.readouterr().err
    assert "mixed_bfloat16" in said and "1 replica: nothing is shared out" in said


def test_a_finished_run_is_not_trained_again(photographs, finished):
    run_dir, _ = finished
    before = runs.RunFolder(run_dir).checkpoints.newest_first()[0].stat().st_mtime_ns
    assert train(photographs, run_dir).progress.step == 24
    assert runs.RunFolder(run_dir).checkpoints.newest_first()[0].stat().st_mtime_ns == before


def test_another_configuration_is_refused(photographs, finished):
    with pytest.raises(config.ConfigError, match="configuration .was: run.epochs = 2; is now: run.epochs = 3"):
        train(photographs, finished[0], "run.epochs = 3")


@pytest.mark.parametrize("place", ["elsewhere", "elsewhere/" + 30 * "a-long-name-of-a-folder/"])
def test_images_that_were_moved_are_the_same_run(photographs, finished, tmp_path, place):
    run_dir, moved = tmp_path / "run", tmp_path / place
    shutil.copytree(finished[0], run_dir)
    shutil.copytree(photographs, moved)
    assert train(moved, run_dir).progress.step == 24
    assert runs.FinishedRun(run_dir).split("test").num_classes == 5
    assert runs.RunFolder(run_dir).data_root() == str(moved)
    assert str(tmp_path) not in (run_dir / "config.gin").read_text() + (run_dir / "operative_config.gin").read_text()


def test_a_command_that_failed_early_leaves_nothing_that_refuses_the_corrected_one(photographs, tmp_path):
    with pytest.raises(ValueError, match="absent"):
        train(tmp_path / "absent", tmp_path / "run")
    with pytest.raises(config.ConfigError, match="Received: ways=20.*Validation.every_epochs = 0"):
        train(photographs, tmp_path / "run", "Validation.ways = 20")
    assert train(photographs, tmp_path / "run", "run.epochs = 1").progress.step == 12


def test_a_picture_that_cannot_be_drawn_does_not_end_the_training(photographs, tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise ValueError("Two components are wanted")

    monkeypatch.setattr(runs.figures.analysis, "lda_projection", refuse)
    assert train(photographs, tmp_path / "run", "run.epochs = 1").progress.step == 12
    assert "no LDA projection" in caplog.text


def test_weights_that_are_not_finite_are_never_saved(photographs, tmp_path, monkeypatch):
    original = runs.training._Loop._end_epoch

    def poison(self):
        if self.progress.step == 24:
            self.learner.classifier.bias.assign([np.nan] * 6)
        original(self)

    monkeypatch.setattr(runs.training._Loop, "_end_epoch", poison)
    with pytest.raises(TrainingDiverged, match=r"bias is not finite at step 24; the last good .*00000012"):
        train(photographs, tmp_path / "run")


def test_a_relative_root_is_the_same_run_from_any_folder(photographs, tmp_path, monkeypatch):
    monkeypatch.chdir(photographs.parent)
    outcome = train(photographs.name, tmp_path / "run", "run.epochs = 1")
    monkeypatch.chdir(tmp_path)
    assert train(photographs, tmp_path / "run", "run.epochs = 1").progress.step == outcome.total
    assert runs.FinishedRun("run").split("test").num_classes == 5


def test_a_run_is_read_without_its_training_images(photographs, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(photographs, copy)
    train(copy, tmp_path / "run", "run.epochs = 1")
    normalization = runs.RunFolder(tmp_path / "run").data_facts().normalization
    shutil.rmtree(copy / "train")
    run = runs.FinishedRun(tmp_path / "run")
    assert tuple(run.backbone.get_layer("normalize").mean) == normalization[0]


def test_a_damaged_best_checkpoint_is_one_clear_line(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    best = runs.RunFolder(tmp_path / "run").checkpoints.best
    best.write_bytes(best.read_bytes()[:100])
    with pytest.raises(config.ConfigError, match="best.npz cannot be used.*--checkpoint=last"):
        runs.FinishedRun(tmp_path / "run")
    assert runs.FinishedRun(tmp_path / "run", checkpoint="last").step == 24


def test_classes_that_were_learned_from_are_not_tested_on(photographs, tmp_path, capsys):
    """Without one of its 4 test classes, a folder of 11 splits 6 : 4: one that was learned from would be tested."""
    root, run_dir = tmp_path / "root", tmp_path / "run"
    for folder in (*(photographs / "train").iterdir(), *(photographs / "test").iterdir()):
        shutil.copytree(folder, root / folder.name)
    train(root, run_dir, "load.fractions = (0.6, 0.0, 0.4)", "Validation.every_epochs = 0", "run.epochs = 1")
    assert "train: 168 images of 7 classes; put aside for testing: 4 classes; from the start" in capsys.readouterr().err
    parts = json.loads((run_dir / "environment.json").read_text())["random_split"]
    assert {split: len(names) for split, names in parts.items()} == {"train": 7, "test": 4}
    evaluate = ["evaluate", f"--run_dir={run_dir}", "--heads=ridge", "--ways=3", "--tasks=4", "--queries=2"]
    shutil.move(root / parts["test"][0], tmp_path / "aside")
    assert cli.main(evaluate) == 1
    error = capsys.readouterr().err
    assert any(f"{name!r} would come to the test split" in error for name in parts["train"])
    assert "put them back (environment.json names them)" in error
    shutil.move(tmp_path / "aside", root / parts["test"][0])
    assert cli.main(evaluate) == cli.main([*evaluate, "--split=train"]) == 0
    # Renamed so that it comes to the test split, a class that was learned from has no name by which it is known.
    renamed = next(name for name in map(str, range(1000)) if name in image_folder.split_classes(
        [name, *parts["train"][1:], *parts["test"]], "test", 0, (0.6, 0.0, 0.4)))
    shutil.move(root / parts["train"][0], root / renamed)
    assert cli.main(evaluate) == 1 and f"{renamed!r} would come to the test split" in capsys.readouterr().err
    shutil.rmtree(root / renamed)  # 6 : 4 now, and none of the six has moved
    assert cli.main(evaluate) == 0
    for folder in list(root.iterdir()):  # every name is another: the folder is the run's all the same
        folder.rename(root / f"new {folder.name}")
    assert cli.main(evaluate) == 1 and "would come to the test split" in capsys.readouterr().err
    shutil.copytree(photographs / "test", tmp_path / "other")
    for folder in list((tmp_path / "other").iterdir()):
        folder.rename(tmp_path / "other" / f"other {folder.name}")
    other = [f"--gin_bindings=load.root = '{tmp_path / 'other'}'", "--gin_bindings=load.fractions = (0.0, 0.0, 1.0)"]
    assert cli.main([*evaluate, *other]) == 0


def test_one_class_is_refused(photographs, tmp_path):
    root = tmp_path / "root"
    for name in ("train0", "train1"):
        shutil.copytree(photographs / "train" / name, root / name)
    two = ("load.fractions = (0.8, 0.0, 0.2)", "Validation.every_epochs = 0")
    with pytest.raises(config.ConfigError, match="image_folder/train has 'train.' alone .a folder without train, val"):
        train(root, tmp_path / "run", *two)


def test_changed_data_is_refused(photographs, finished, tmp_path):
    copy, run_dir = tmp_path / "copy", tmp_path / "run"
    shutil.copytree(photographs, copy)
    train(copy, run_dir)
    first = sorted((copy / "train" / "train0").iterdir())[0]
    shutil.copy(sorted((copy / "train" / "train1").iterdir())[0], first)
    with pytest.raises(config.ConfigError, match="images of the train split have changed"):
        train(copy, run_dir)


def test_a_second_process_is_refused(finished, photographs):
    with runs.RunFolder(finished[0]).claimed(), pytest.raises(config.ConfigError, match="another process"):
        train(photographs, finished[0])


def test_a_validation_that_was_broken_off_is_made_up_for(photographs, tmp_path, finished, monkeypatch):
    """The checkpoint comes first, so nothing is lost; and the next start validates before it trains on."""
    original = runs.training._Loop._validate

    def broken_off(self, epoch):
        raise MemoryError("the first validation")

    monkeypatch.setattr(runs.training._Loop, "_validate", broken_off)
    with pytest.raises(MemoryError):
        train(photographs, tmp_path / "run")
    monkeypatch.setattr(runs.training._Loop, "_validate", original)
    outcome = train(photographs, tmp_path / "run")
    assert outcome.progress.validations == finished[1].progress.validations
    assert outcome.progress.best_step == finished[1].progress.best_step
    assert "BatchNorm inductive" in str(outcome)


def test_the_initial_weights_can_be_read_back(finished):
    folder, plan = finished[0], runs.FinishedRun(finished[0]).plan
    initial = runs.FinishedRun(folder, checkpoint="initial")
    fresh = plan.build(runs.RunFolder(folder).data_facts())
    assert initial.step == 0 and initial.checkpoint == "initial (untrained)"
    assert runs.FinishedRun(folder, checkpoint="last").checkpoint == "last, step 24"
    for expected, got in zip(fresh.variables, initial.learner.variables, strict=True):
        np.testing.assert_array_equal(expected, got)


def test_non_finite_loss_names_the_step_and_the_last_checkpoint(photographs, tmp_path):
    with pytest.raises(TrainingDiverged, match=r"the loss is (nan|inf) at step \d+; there is no checkpoint yet"):
        train(photographs, tmp_path / "run", "sgd.rates = (1e30,)")


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(photographs, tmp_path, finished, damage, caplog):
    run_dir = tmp_path / "run"
    shutil.copytree(finished[0], run_dir)
    newest = runs.RunFolder(run_dir).checkpoints.newest_first()[0]
    content = bytearray(newest.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 0xFF
    else:
        content = content[: len(content) // 2]
    newest.write_bytes(content)
    assert train(photographs, run_dir).progress.step == 24
    assert "cannot be used" in caplog.text
    for name, value in weights(finished[0]).items():
        np.testing.assert_array_equal(value, weights(run_dir)[name])


@pytest.mark.long
def test_sigkill_at_ten_random_moments_is_bit_identical(photographs, tmp_path):
    more = bindings(photographs, "run.epochs = 200", "Validation.head = @Prototypes()", "Validation.every_epochs = 7")
    command = [sys.executable, "-m", "tf_unravel.cli", "train", "--gin_file=data/image_folder.gin",
               "--gin_file=backbone/conv4.gin", "--gin_file=learner/feature_clustering.gin"]
    command += [f"--gin_bindings={line}" for line in more]
    began = time.monotonic()
    subprocess.run([*command, f"--run_dir={tmp_path / 'whole'}"], check=True, capture_output=True)
    length = time.monotonic() - began
    seconds = json.loads((tmp_path / "whole" / "results.json").read_text())["training"]["seconds"]
    # Every second life ends while the program starts, the others within a sixth of the training, counted from where it
    # begins: five of these end at five places, and do not finish it.
    rng, kills, steps = random.Random(0), 0, []
    lives = [rng.uniform(0.03, 1 / 6) * seconds if kill % 2 else rng.uniform(0.3, 1.0) * (length - seconds)
             for kill in range(10)]
    while True:
        process = subprocess.Popen([*command, f"--run_dir={tmp_path / 'killed'}"], stderr=subprocess.PIPE)
        said = b""
        while kills < 10 and kills % 2 and b"compiling the first step" not in said:
            said += process.stderr.read1()
        try:
            process.communicate(timeout=lives[kills] if kills < 10 else None)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            newest = runs.RunFolder(tmp_path / "killed").checkpoints.newest_first()
            steps.append(newest[0].name if newest else "none")
            continue
        assert process.returncode == 0
        break
    assert kills == 10 and len(set(steps)) > 4, steps
    for name, value in weights(tmp_path / "whole").items():
        np.testing.assert_array_equal(value, weights(tmp_path / "killed")[name])
