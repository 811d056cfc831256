"""`evaluate --model` and `measure --model`: an exported model is judged as the run that it came from is."""

import json
import pathlib
import re
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_unravel as tu
from tests.learners.problems import small_network
from tf_unravel import cli, commands
from tf_unravel.commands import exported_models
from tf_unravel.reproduction.benchmark import many_images

FEW = ["--ways=3", "--shots=1,2", "--queries=4", "--tasks=20"]
BINDINGS = ["conv4.filters = 4", "run.epochs = 1", "ClassPairs.batch_size = 10", "ClassPairs.padding = 1",
            "load.image_size = 16", "load.fractions = (0.5, 0.2, 0.3)", "Validation.every_epochs = 0",
            "sgd.rates = (0.05,)", "sgd.epochs = ()", "FineTune.steps = 1"]  # fmt: skip


@pytest.fixture(scope="module")
def classes(photographs, tmp_path_factory) -> pathlib.Path:
    """16 folders of classes that a seed splits."""
    root = tmp_path_factory.mktemp("classes") / "images"
    for split in ("train", "val", "test"):
        shutil.copytree(photographs / split, root, dirs_exist_ok=True)
    return root


@pytest.fixture(scope="module")
def run(classes, tmp_path_factory) -> pathlib.Path:
    """A run on them, evaluated under two heads, and exported under each."""
    folder = tmp_path_factory.mktemp("runs")
    bindings = [f"--gin_bindings={line}" for line in BINDINGS]
    train = ["train", "--gin_file=gin/run/own_images.gin", f"--run_dir={folder / 'run'}", f"--data_root={classes}"]
    assert cli.main([*train, *bindings]) == 0
    heads = "svm,fine_tune"
    assert cli.main(["evaluate", f"--run_dir={folder / 'run'}", f"--heads={heads}", *FEW]) == 0
    for head in heads.split(","):
        assert cli.main(["export", f"--run_dir={folder / 'run'}", f"--head={head}", f"--out={folder / head}"]) == 0
    return folder


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TF_UNRAVEL_CACHE", str(tmp_path / "cache"))


def rows(path: pathlib.Path) -> dict[tuple[str, int], dict]:
    return {(row["head"], row["shots"]): row for row in json.loads(path.read_text())}


@pytest.mark.parametrize("head", ["svm", "fine_tune"])
def test_the_numbers_are_those_of_the_run(run, classes, head, tmp_path, capsys):
    """On the classes of its test split: those that it was trained on or chosen by are left out."""
    assert cli.main(["evaluate", f"--model={run / head}", f"--data_root={classes}", f"--out={tmp_path}", *FEW]) == 0
    expected, found = rows(run / "run" / "evaluation.json"), rows(tmp_path / "evaluation.json")
    assert set(found) == {(head, 1), (head, 2)}
    assert f"Figure: {tmp_path / 'accuracy_test.png'}" in capsys.readouterr().out
    assert (tmp_path / "accuracy_test.png").read_bytes().startswith(b"\x89PNG")
    for key, row in found.items():
        for what in ("mean", "standard_error", "settings", "num_tasks", "batchnorm", "adaptation", "fingerprint"):
            assert row[what] == expected[key][what], what


def test_the_card_records_them_once_for_each_question(run, classes, tmp_path):
    shutil.copytree(run / "svm", tmp_path / "model")
    card = tmp_path / "model" / "tf_unravel.json"
    value = json.loads(card.read_text())
    card.write_text(json.dumps({**value, "accuracies": []}))
    for shots in ("1", "1,2"):
        asked = ["evaluate", f"--model={tmp_path / 'model'}", f"--data_root={classes}", f"--out={tmp_path}", *FEW]
        assert cli.main([*asked, f"--shots={shots}"]) == 0
    assert [row["shots"] for row in json.loads(card.read_text())["accuracies"]] == [1, 2]
    assert json.loads(card.read_text())["note"].startswith("These accuracies were measured")
    tu.deployment.load(tmp_path / "model")  # it is still a card


def test_features_are_measured_as_the_run_s(run, classes, tmp_path, capsys):
    assert cli.main(["measure", f"--run_dir={run / 'run'}", "--pairs=200"]) == 0
    assert cli.main(["measure", f"--model={run / 'svm'}", f"--data_root={classes}", "--pairs=200",
                     f"--out={tmp_path}"]) == 0
    (expected,), (found,) = (json.loads((folder / "measurement.json").read_text())
                             for folder in (run / "run", tmp_path))
    for name in ("r_fc", "r_hv", "variance_ratio"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)
    said = capsys.readouterr().out
    for name in ("lda_test.png", "clustering_test.png"):
        assert (tmp_path / name).is_file() and f"Figure: {tmp_path / name}" in said


def test_features_are_computed_once(run, classes, tmp_path, monkeypatch):
    asked = ["evaluate", f"--model={run / 'svm'}", f"--data_root={classes}", f"--out={tmp_path}", *FEW]
    assert cli.main(asked) == 0

    def never(*_):
        raise AssertionError("features are computed again")

    monkeypatch.setattr(tu.deployment.Model, "features", never)
    assert cli.main(asked) == 0


def test_images_of_a_folder_are_never_in_memory_at_once(tmp_path, monkeypatch):
    """More than two batches: they stay in the cache's file, and so do their features."""
    count, classes = 600, tmp_path / "images"
    many_images.write_images(classes, count, 6, 16)
    tu.export(small_network(), tu.heads.Prototypes(), tmp_path / "model")
    taken, features_of = [], tu.deployment.Model.features

    def features(self, images):
        taken.append(len(images))
        return features_of(self, images)

    monkeypatch.setattr(tu.deployment.Model, "features", features)
    model = tu.deployment.load(tmp_path / "model")
    split = commands.Question([str(model.path)], str(classes)).images(model)
    found = exported_models.features_of(model, split)
    assert sum(taken) == len(split) == count and max(taken) <= 256
    for array in (split.images, found):
        assert isinstance(array, np.memmap) and not array.flags.owndata
    np.testing.assert_array_equal(found, features_of(model, split.images))


def test_a_savedmodel_without_a_card(tmp_path, toy_split, capsys):
    backbone = small_network()
    tu.export(backbone, tu.heads.Ridge(), tmp_path / "model")
    (tmp_path / "model" / "tf_unravel.json").unlink()
    model = tu.deployment.load(tmp_path / "model")
    asked = {"ways": 3, "shots": 2, "queries": 4, "num_tasks": 8}
    found, expected = tu.evaluate(model, split=toy_split, **asked), tu.evaluate(backbone, tu.heads.Ridge(), toy_split,
                                                                                **asked)
    np.testing.assert_array_equal(found.per_task, expected.per_task)
    before = sorted(path.name for path in (tmp_path / "model").iterdir())
    folder = tmp_path / "images"
    for image, class_id in zip(toy_split.images, toy_split.class_ids, strict=True):
        (folder / str(class_id)).mkdir(parents=True, exist_ok=True)
        path = folder / str(class_id) / f"{len(list((folder / str(class_id)).iterdir()))}.png"
        path.write_bytes(tf.io.encode_png(image).numpy())
    evaluate = ["evaluate", f"--model={tmp_path / 'model'}", f"--data_root={folder}", f"--out={tmp_path / 'out'}"]
    assert cli.main([*evaluate, *FEW]) != 0
    assert "does not say the size of its images; give --image_size" in capsys.readouterr().err
    assert cli.main([*evaluate, *FEW, "--image_size=16"]) == 0
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == before  # nothing is written into it


def test_a_model_takes_the_place_of_a_backbone(tmp_path, toy_split):
    backbone = small_network()
    tu.export(backbone, tu.heads.SVM(c=0.5), tmp_path / "model")
    model = tu.deployment.load(tmp_path / "model")
    assert model.head == tu.heads.SVM(c=0.5)
    asked = {"ways": 3, "shots": 2, "queries": 4, "num_tasks": 50}
    for head in (None, tu.heads.Ridge()):
        found = tu.evaluate(model, head, toy_split, **asked)
        expected = tu.evaluate(backbone, head or tu.heads.SVM(c=0.5), toy_split, **asked)
        np.testing.assert_array_equal(found.per_task, expected.per_task)
        assert found.batchnorm == expected.batchnorm
    with pytest.raises(ValueError, match="head must be a head, such as heads.Ridge.* Received: None"):
        tu.evaluate(backbone, None, toy_split)
    with pytest.raises(ValueError, match="adapts a backbone: give the keras.Model. Received: an exported model"):
        tu.evaluate(model, tu.heads.FineTune(), toy_split, **asked)


def test_a_pretrained_network_is_exported_and_judged_without_training(tmp_path, classes, capsys):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((16, 16, 3)), keras.layers.Conv2D(6, 3, strides=2), keras.layers.ReLU()]
    keras.Sequential(layers, name="net").save(tmp_path / "net.keras")
    asked = ["export", f"--backbone={tmp_path / 'net.keras'}", "--normalization=127,128", "--head=ridge",
             f"--out={tmp_path / 'model'}", "--gin_bindings=Ridge.l2 = 3.0"]  # fmt: skip
    assert cli.main(asked) == 0
    assert "16x16, 6 features; ridge, l2 3" in capsys.readouterr().out
    assert tu.deployment.load(tmp_path / "model").head == tu.heads.Ridge(l2=3.0)
    card = json.loads((tmp_path / "model" / "tf_unravel.json").read_text())
    assert card["trained"] == {"backbone": "net.keras", "weights": "its own"}
    assert cli.main(["evaluate", f"--model={tmp_path / 'model'}", f"--data_root={classes}", f"--out={tmp_path}",
                     *FEW]) == 0
    assert "ridge" in capsys.readouterr().out


def test_built_in_classes_are_said_to_have_no_part(tmp_path, classes, caplog):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((16, 16, 3)), keras.layers.Conv2D(6, 3, strides=2), keras.layers.ReLU()]
    keras.Sequential(layers, name="net").save(tmp_path / "net.keras")
    assert cli.main(["export", f"--backbone={tmp_path / 'net.keras'}", "--head=prototypes", f"--support={classes}",
                     f"--out={tmp_path / 'model'}"]) == 0
    assert cli.main(["evaluate", f"--model={tmp_path / 'model'}", f"--data_root={classes}", f"--out={tmp_path}",
                     *FEW]) == 0
    assert "its built-in classes are not used" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["evaluate", "--heads=ridge"], "--heads is for runs; .*Received: --model and --heads=.'ridge'"),
        (["evaluate", "--checkpoint=last"], "--checkpoint is for runs"),
        (["measure", "--gin_bindings=Ridge.l2 = 1.0"], "--gin_bindings is for runs"),
        (["evaluate", "--image_size=1,2,3"], "--image_size is pixels of a side, or height,width. Received: .1, 2, 3"),
        (["evaluate", "--ways=40"], "ways=40"),
    ],
)
def test_errors_are_one_line(run, classes, options, message, tmp_path, capsys):
    assert cli.main([*options, f"--model={run / 'svm'}", f"--data_root={classes}", f"--out={tmp_path}"]) != 0
    line = capsys.readouterr().err.strip()
    assert re.search(message, line) and "\n" not in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--run_dir=r", "--weights=none"], "--weights belongs to --backbone. Received: --run_dir and --weights=none"),
        (["--backbone=VGG16", "--checkpoint=last"], "--checkpoint belongs to --run_dir. Received: --backbone and"),
        (["--backbone=VGG"], "a .keras file, hub:PRESET or one of keras.applications: .*VGG16.* Received: 'VGG'"),
        (["--backbone=VGG16", "--head=own"], "--head must be one of .* for a pretrained network. Received: own"),
    ],
)
def test_errors_of_export_are_one_line(options, message, tmp_path, capsys):
    head = [] if any(option.startswith("--head") for option in options) else ["--head=ridge"]
    assert cli.main(["export", *options, *head, f"--out={tmp_path / 'model'}"]) != 0
    line = capsys.readouterr().err.strip()
    assert re.search(message, line) and "\n" not in line


def test_a_model_with_its_classes_built_in_takes_no_tasks(tmp_path, toy_split):
    known = [0, 1, 30, 31]
    tu.export(small_network(), tu.heads.FineTune(steps=1), tmp_path / "model",
              support=(toy_split.images[known], toy_split.class_ids[known]))
    with pytest.raises(ValueError, match="a model that takes a support set; export it without --support"):
        tu.evaluate(tu.deployment.load(tmp_path / "model"), split=toy_split, ways=2, num_tasks=2)


def test_calibration_and_unknown_of_a_run_and_its_export(run, classes, tmp_path, capsys):
    """The same numbers; the card has the prior that the run's training classes give."""
    few = ["--ways=2", "--shots=1,2", "--queries=4", "--tasks=60", "--calibration", "--unknown=0.1"]
    assert cli.main(["evaluate", f"--run_dir={run / 'run'}", "--heads=svm", f"--out={tmp_path / 'run'}", *few]) == 0
    table = capsys.readouterr().out
    assert "ECE before, %" in table and "Expected calibration error over 15 bins of equal width" in table
    assert 'AUROC of the similarity that decides; answered "unknown" at a rate of 10 %' in table
    assert cli.main(["evaluate", f"--model={run / 'svm'}", f"--data_root={classes}", f"--out={tmp_path}", *few]) == 0
    card = json.loads((run / "svm" / "tf_unravel.json").read_text())["calibration"]
    assert card["prior_from"] == "one-shot tasks of the training classes" and len(card["similarities"]) == 100
    expected = rows(tmp_path / "run" / "evaluation.json")
    for folder in (tmp_path / "run", tmp_path):
        assert (folder / "reliability_test.png").read_bytes().startswith(b"\x89PNG")
    for key, row in rows(tmp_path / "evaluation.json").items():
        assert row["calibration"]["temperature"] == card["temperature"] != 0.1
        for when in ("before", "after"):
            for name, value in row["calibration"][when].items():
                assert value == pytest.approx(expected[key]["calibration"][when][name], abs=1e-5)
        assert row["calibration"]["before"]["accuracy"] == pytest.approx(row["mean"])
        assert row["unknown"] == pytest.approx(expected[key]["unknown"], abs=1e-5)
        assert row["unknown"]["num_tasks"] == 60 and 0 <= row["unknown"]["auroc"] <= 1


@pytest.mark.parametrize(("options", "message"), [
    (["--heads=fine_tune", "--calibration"], "A head that reads images adapts the network, and is not calibrated"),
    (["--heads=ridge", "--unknown", "--ways=4"], "its 4 classes and as many others; lower ways"),
    (["--heads=ridge", "--unknown=5"], "rate of false alarms lies between 0 and 1, such as 0.05. Received: 5.0"),
])  # fmt: skip
def test_what_cannot_be_calibrated_is_one_line(run, options, message, capsys, tmp_path):
    asked = ["evaluate", f"--run_dir={run / 'run'}", f"--out={tmp_path}", *FEW, *options]
    assert cli.main(asked) == 1
    assert message in capsys.readouterr().err


def test_a_run_without_its_images_is_calibrated_by_the_constants(run, tmp_path, caplog):
    shutil.copytree(run / "run", tmp_path / "run")
    gone = ["export", f"--run_dir={tmp_path / 'run'}", f"--data_root={tmp_path / 'gone'}", "--head=ridge"]
    assert cli.main([*gone, f"--out={tmp_path / 'model'}"]) == 0
    assert "calibrated by the package's constants, without the run's training classes" in caplog.text
    assert tu.deployment.load(tmp_path / "model").prior == tu.heads.Prior()
