"""The exported model: its answers are those of the Python path, TensorFlow alone loads it, and it refuses nonsense."""

import json
import os
import pathlib
import re
import subprocess
import venv

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.deployment.models import all_heads, calibrated_in_python, file_of, in_python, network, task
from tests.faults import bound_by_permissions, tmpfs
from tf_unravel import backbones, export, heads
from tf_unravel.data.storage.decoding import Decoding, decode
from tf_unravel.deployment import Model
from tf_unravel.deployment.exporting import saved_model
from tf_unravel.files import NotWritten

NAMES = ("prototypes", "ridge", "svm", "linear", "fine_tune", "fine_tune_in_batches", "maml", "reptile")
BAKED = ("ridge", "fine_tune", "maml", "reptile")  # of each kind one: features, and three protocols of BatchNorm


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(folder of models <name> and <name>_baked, backbone, heads)."""
    folder, backbone = tmp_path_factory.mktemp("models"), network()
    by_name = all_heads(backbone)
    assert tuple(by_name) == NAMES
    for name, head in by_name.items():
        export(backbone, head, folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saved_model, "_BATCH", 4)  # of 9 support images
        for name in BAKED:
            known = task()
            export(backbone, by_name[name], folder / f"{name}_baked", support=(known.support, known.labels),
                   class_names=["zèbre", "ape", "cat"])
    return folder, backbone, by_name


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_of_python_whatever_ways_shots_and_queries(exported, name):
    folder, backbone, by_name = exported
    model, head = Model(folder / name), by_name[name]
    learned = head.learned_ways is not None
    for asked in [task()] if learned else [task(), task(ways=2, queries=1), task(ways=5, queries=4)]:
        expected = in_python(backbone, head, asked)
        got = model.answer(asked.query, asked.support, asked.labels)
        assert got["logits"].dtype == np.float32 and np.ptp(expected) > 0.01  # a thousand times the tolerance
        np.testing.assert_allclose(tf.nn.softmax(got["logits"]), expected, rtol=0, atol=1e-5)
        probabilities, _, p_known = calibrated_in_python(backbone, head, asked)
        np.testing.assert_allclose(got["probabilities"], probabilities, rtol=0, atol=1e-5)
        np.testing.assert_allclose(got["p_known"], p_known, rtol=0, atol=1e-5)
        assert (got["probabilities"].argmax(axis=1) == got["logits"].argmax(axis=1)).all()


@pytest.mark.parametrize("name", BAKED)
def test_a_baked_in_support_set_answers_the_same(exported, name):
    folder, backbone, by_name = exported
    asked = task()
    answer = tf.saved_model.load(str(folder / f"{name}_baked")).signatures["classify"](images=tf.constant(asked.query))
    expected = calibrated_in_python(backbone, by_name[name], asked)
    for output, value in zip(("probabilities", "logits", "p_known"), expected, strict=True):
        np.testing.assert_allclose(answer[output], value, rtol=1e-5, atol=1e-5)
    names = [[text.decode() for text in row] for row in answer["class_names"].numpy()]
    assert names == [["zèbre", "ape", "cat"]] * len(asked.query)
    card = json.loads((folder / f"{name}_baked" / "tf_unravel.json").read_text(encoding="utf-8"))
    assert card["class_names"] == ["zèbre", "ape", "cat"] and card["support_per_class"] == [1, 3, 5]


def test_features_are_the_backbones_for_any_number_of_images(exported):
    folder, backbone, _ = exported
    model = Model(folder / "ridge")
    for count in (1, 9):
        images = task(queries=count).query
        expected = backbone(images.astype(np.float32), training=False)
        np.testing.assert_allclose(model.features(images), expected, rtol=1e-5, atol=1e-5)


def test_the_signatures_are_what_a_server_needs(exported):
    """Names, types and free sizes, as TensorFlow Serving reads them; serving_default is there."""
    loaded = tf.saved_model.load(str(exported[0] / "ridge"))
    pixels, files = {"features", "classify", "serving_default"}, {"features_encoded", "classify_encoded"}
    assert set(loaded.signatures) == pixels | files
    inputs = loaded.signatures["classify"].structured_input_signature[1]
    found = {name: (spec.dtype.name, spec.shape.as_list()) for name, spec in inputs.items()}
    images = ("uint8", [None, None, None, 3])
    assert found == {"support_images": images, "support_labels": ("int32", [None]), "query_images": images}
    inputs = loaded.signatures["classify_encoded"].structured_input_signature[1]
    found = {name: (spec.dtype.name, spec.shape.as_list()) for name, spec in inputs.items()}
    strings = ("string", [None])
    assert found == {"support_bytes": strings, "support_labels": ("int32", [None]), "query_bytes": strings}
    for name in ("features", "features_encoded", "serving_default"):
        assert set(loaded.signatures[name].structured_outputs) == {"features"}
    plain = tf.saved_model.load(str(exported[0] / "ridge_baked"))
    for name in ("classify_encoded", "serving_default"):
        assert set(plain.signatures[name].structured_outputs) == {"probabilities", "logits", "p_known", "class_names"}
    assert set(plain.signatures["classify_encoded"].structured_input_signature[1]) == {"image_bytes"}


@pytest.mark.parametrize("name", ["ridge", "maml", "ridge_baked"])
def test_files_are_answered_as_their_pixels(exported, name):
    """Of the model's size, without loss: the very answers."""
    model, asked = Model(exported[0] / name), task()
    support, query = ([file_of(image, kind) for image, kind in zip(images, ["PNG", "BMP"] * len(images), strict=False)]
                      for images in (asked.support, asked.query))
    known, known_files = (asked.support, asked.labels), (support, asked.labels)
    if name.endswith("baked"):
        known = known_files = ()
    np.testing.assert_array_equal(model.classify_encoded(query, *known_files), model.classify(asked.query, *known))
    np.testing.assert_array_equal(model.features_encoded(query), model.features(asked.query))


def test_files_of_a_request_may_differ_in_size_and_bad_ones_are_refused(exported):
    model, image = Model(exported[0] / "ridge"), task().query[0]
    large = image.repeat(3, 0).repeat(5, 1)
    files = [file_of(image), file_of(large), file_of(large[:, :40], "JPEG")]
    by_pillow = np.stack([decode(data, Decoding((16, 16)))[0] for data in files])
    np.testing.assert_allclose(model.features_encoded(files), model.features(by_pillow), rtol=0, atol=0.05)
    with pytest.raises(ValueError, match=r"one label for each support image. Received: .* \[2\] \[labels\] \[1\]"):
        model.classify_encoded([file_of(image)], [file_of(image), file_of(large)], [0])
    with pytest.raises(ValueError, match=r"at least one image file. Received: \[image_bytes\] \[0\]"):
        model.features_encoded([])
    with pytest.raises(ValueError, match=r"must be JPEG, PNG or BMP. Received: \[support_bytes\] \[file\] \[1\]"):
        model.classify_encoded([file_of(image)], [file_of(image), b"GIF89a"], [0, 1])
    with pytest.raises(ValueError, match="refuses this: an image file is damaged. Received: Invalid PNG data"):
        model.features_encoded([file_of(image)[:-30]])


def test_a_model_of_an_earlier_version_takes_pixels_and_says_what_to_do_for_files(tmp_path, monkeypatch):
    monkeypatch.setattr(saved_model, "encoded_signatures", lambda *_: {})
    asked, model = task(), Model(export(network(), heads.Ridge(), tmp_path / "model"))
    assert model.classify(asked.query, asked.support, asked.labels).shape == (7, 3)
    with pytest.raises(ValueError, match="no signature features_encoded; export the model again .*Received: "):
        model.features_encoded([file_of(asked.query[0])])


ALONE = """
import sys
import importlib.util
assert not any(map(importlib.util.find_spec, ("tf_unravel", "gin")))
import numpy as np
import tensorflow as tf
folder, questions, answers = sys.argv[1:]
asked, given = np.load(questions), {}
for name in asked["names"]:
    signatures = tf.saved_model.load(f"{folder}/{name}").signatures
    given[f"{name} features"] = signatures["features"](images=tf.constant(asked["query"]))["features"].numpy()
    few = {key: tf.constant(asked[key]) for key in ("support_images", "support_labels", "query_images")}
    few = {"images": few["query_images"]} if str(name).endswith("_baked") else few
    given[str(name)] = signatures["classify"](**few)["probabilities"].numpy()
    files = tf.stack([tf.io.encode_png(image) for image in asked["query"]])
    given[f"{name} encoded"] = signatures["features_encoded"](image_bytes=files)["features"].numpy()
np.savez(answers, **given)
"""


def answers_alone(python, folder, backbone, by_name, tmp_path):
    """Runs every model in another interpreter and holds what it says against the Python path."""
    asked = task()
    names = [*NAMES, *(f"{name}_baked" for name in BAKED)]
    np.savez(tmp_path / "asked.npz", names=names, query=asked.query, query_images=asked.query,
             support_images=asked.support, support_labels=asked.labels)
    command = [python, "-I", "-c", ALONE, str(folder), str(tmp_path / "asked.npz"), str(tmp_path / "given.npz")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TF_ENABLE_ONEDNN_OPTS": "1"})
    assert done.returncode == 0, done.stderr
    given = np.load(tmp_path / "given.npz")
    features = backbone(asked.query.astype(np.float32), training=False)
    for name in names:
        expected, *_ = calibrated_in_python(backbone, by_name[name.removesuffix("_baked")], asked)
        np.testing.assert_allclose(given[name], expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(given[f"{name} features"], features, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(given[f"{name} encoded"], features, rtol=1e-5, atol=1e-5)


def test_tensorflow_alone_loads_it(exported, tmp_path):
    """A fresh virtual environment with what is installed here, but for Keras, gin and this package.

    (Keras comes with TensorFlow, and need not be there.)
    """
    venv.create(tmp_path / "venv", with_pip=False)
    site = next((tmp_path / "venv").glob("[Ll]ib*/**/site-packages"))
    for package in pathlib.Path(tf.__file__).parents[1].iterdir():
        if not re.match(r"(tf_)?keras|gin|.*tf_unravel|__pycache__|.*\.pth$", package.name):
            (site / package.name).symlink_to(package)
    python = next(path for path in (tmp_path / "venv").glob("*/python*") if path.parent.name in ("bin", "Scripts"))
    answers_alone(str(python), *exported, tmp_path)


@pytest.mark.long
def test_a_virtual_environment_with_nothing_but_tensorflow_loads_it(exported, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(next(path for path in (tmp_path / "venv").glob("*/python*") if path.parent.name in ("bin", "Scripts")))
    wanted = f"tensorflow=={tf.__version__}"
    done = subprocess.run([python, "-m", "pip", "install", "--quiet", wanted], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{wanted} cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    answers_alone(python, *exported, tmp_path)


IMAGES = np.zeros((3, 16, 16, 3), np.uint8)


@pytest.mark.parametrize(("name", "support", "labels", "query", "message"), [
    ("ridge", IMAGES, [0, 1, -1], IMAGES, r"0 or more. Received: \[0 1 -1\]"),
    ("ridge", IMAGES, [0, 1], IMAGES, r"one label for each support image. Received: \[images\] \[3\] \[labels\] \[2\]"),
    ("ridge", IMAGES, [0, 0, 2], IMAGES, r"every class from 0 .* needs a support image. Received: \[0 0 2\]"),
    ("ridge", IMAGES, [0, 1, 2**31 - 1], IMAGES, r"every class from 0 .* Received: \[0 1 2147483647\]"),
    ("ridge", IMAGES, [0, 0, 0], IMAGES, r"two classes at least. Received: \[0 0 0\]"),
    ("ridge", IMAGES[:0], [], IMAGES, r"support_images must be at least one .* Received: \[shape\] \[0 16 16 3\]"),
    ("ridge", IMAGES, [0, 1, 1], IMAGES[:0], r"query_images must be at least one .* Received: \[shape\] \[0 16 16 3\]"),
    ("ridge", IMAGES[:, :0], [0, 1, 1], IMAGES, r"at least one pixel. Received: \[shape\] \[3 0 16 3\]"),
    ("maml", IMAGES, [0, 1, 1], IMAGES, r"a classifier of 3 classes and takes labels 0 to 2.* Received: \[0 1 1\]"),
])  # fmt: skip
def test_nonsense_is_refused_inside_the_graph_with_what_was_received(exported, name, support, labels, query, message):
    model = Model(exported[0] / name)
    with pytest.raises(ValueError, match=f"The model refuses this: .*{message}$"):
        model.classify(query, support, np.array(labels, np.int32))


def test_an_answer_that_is_not_finite_is_refused(tmp_path):
    class Diverging(heads.Prototypes):
        def __call__(self, *task):
            return super().__call__(*task) * np.inf  # minus infinity of every class: no softmax

    asked = task()
    export(network(), Diverging(), tmp_path / "model")
    with pytest.raises(ValueError, match="not finite: fine-tuning diverged"):
        Model(tmp_path / "model").classify(asked.query, asked.support, asked.labels)


def test_images_of_another_size_are_resized_and_those_of_its_own_untouched():
    """Held against Pillow's bilinear filter, antialiased too, which rounds to whole grey levels."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, size=(2, 6, 8, 3)).astype(np.uint8).repeat(9, 1).repeat(5, 2)  # 54 x 40
    for size in ((16, 16), (16, 24), (60, 90)):
        smaller = [Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR) for image in coarse]
        got = saved_model.resized(tf.constant(coarse), (*size, 3)).numpy()
        np.testing.assert_allclose(got, np.stack([*map(np.asarray, smaller)]).astype(np.float32), atol=1.01)
    own = rng.integers(0, 256, size=(2, 16, 16, 3)).astype(np.uint8)
    np.testing.assert_array_equal(saved_model.resized(tf.constant(own), (16, 16, 3)), own)


def test_support_and_queries_may_differ_in_size(exported):
    folder, backbone, by_name = exported
    asked, model = task(), Model(folder / "linear")
    larger = asked.support.repeat(2, 1).repeat(2, 2)
    shrunk = saved_model.resized(tf.constant(larger), (16, 16, 3)).numpy()
    expected, *_ = calibrated_in_python(backbone, by_name["linear"], type(asked)(shrunk, asked.labels, asked.query))
    np.testing.assert_allclose(model.classify(asked.query, larger, asked.labels), expected, rtol=0, atol=1e-5)


def test_the_export_is_a_snapshot_and_replaces_an_older_one(tmp_path):
    backbone, images = network(), task().query
    for _ in range(2):
        export(backbone, heads.Ridge(), tmp_path / "model")
        expected = backbone(images.astype(np.float32), training=False).numpy()
        backbone.set_weights([value * 1.5 for value in backbone.get_weights()])
        np.testing.assert_allclose(Model(tmp_path / "model").features(images), expected, rtol=1e-5, atol=1e-5)
    assert os.listdir(tmp_path) == ["model"]


def test_what_is_no_exported_model_is_not_replaced(tmp_path):
    backbone = network()
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("years")
    with pytest.raises(ValueError, match="is no exported model; choose another folder. Received: path="):
        export(backbone, heads.Ridge(), tmp_path / "work")
    with pytest.raises(ValueError, match="is no exported model"):
        export(backbone, heads.Ridge(), tmp_path / "work" / "thesis.txt")
    assert (tmp_path / "work" / "thesis.txt").read_text() == "years"
    (tmp_path / "empty").mkdir()
    assert export(backbone, heads.Ridge(), tmp_path / "empty") == (tmp_path / "empty").resolve()


@pytest.mark.parametrize("name", ["notes.txt", "saved_model.pb.bak", "variables/thesis.txt", "assets/labels.txt",
                                  "2/saved_model.pb", "link"])
def test_a_file_of_somebody_in_a_models_folder_is_not_lost(tmp_path, name):
    model = export(network(), heads.Ridge(), tmp_path / "model")
    (model / name).parent.mkdir(exist_ok=True)
    if name == "link":
        (model / name).symlink_to(tmp_path)
    else:
        (model / name).write_text("years")
    card = (model / "tf_unravel.json").read_bytes()
    with pytest.raises(ValueError, match=f"and {name} would be lost; move that away, or choose another folder"):
        export(network(), heads.SVM(), model)
    assert (model / name).exists() and (model / "tf_unravel.json").read_bytes() == card
    (model / "zz.txt").write_text("more")
    with pytest.raises(ValueError, match=f"and {name} and 1 more would be lost"):
        export(network(), heads.SVM(), model)


def test_a_file_that_comes_while_the_model_is_written_is_not_lost(tmp_path, monkeypatch):
    model = export(network(), heads.Ridge(), tmp_path / "model")
    monkeypatch.setattr(saved_model, "_save", lambda *_: (model / "notes.txt").write_text("years"))
    with pytest.raises(ValueError, match="and notes.txt would be lost"):
        export(network(), heads.SVM(), model)
    assert (model / "notes.txt").exists() and Model(model).card["head"]["name"] == "ridge"
    assert os.listdir(tmp_path) == ["model"]


def test_what_cannot_be_read_in_a_models_folder_is_somebodys_and_litter_is_nobodys(tmp_path):
    model = export(network(), heads.Ridge(), tmp_path / "model")
    (model / "variables" / ".DS_Store").write_text("")
    (model / "Thumbs.db").write_text("")
    export(network(), heads.Ridge(), model)
    (model / "private").mkdir()
    (model / "private" / "thesis.txt").write_text("years")
    (model / "private").chmod(0)
    try:
        with bound_by_permissions(), pytest.raises(ValueError, match="and private would be lost"):
            export(network(), heads.SVM(), model)
    finally:
        (model / "private").chmod(0o755)


def test_a_full_disk_is_one_line_and_leaves_the_old_model(tmp_path, monkeypatch):
    backbone = network()
    export(backbone, heads.Ridge(), tmp_path / "model")
    before = (tmp_path / "model" / "tf_unravel.json").read_bytes()

    def full(*_):
        raise tf.errors.ResourceExhaustedError(None, None, "a/file; No space left on device [Op:SaveV2]\nmore")

    monkeypatch.setattr(tf.saved_model, "save", full)
    with pytest.raises(NotWritten, match=r"/model cannot be written \(No space left on device\): make room"):
        export(backbone, heads.SVM(), tmp_path / "model")
    assert (tmp_path / "model" / "tf_unravel.json").read_bytes() == before and os.listdir(tmp_path) == ["model"]


def test_a_small_disk_that_fills_while_the_model_is_written(tmp_path):
    """No simulation: the weights fit or not, then the graph, then the card."""
    backbone, images, disk = network(), task().query, tmp_path / "disk"
    needed = sum(path.stat().st_size for path in export(backbone, heads.Ridge(), tmp_path / "other").rglob("*")) >> 10
    with tmpfs(disk, 2 * needed) as resize:
        export(backbone, heads.Ridge(l2=3.0), disk / "model")  # as large as the next
        for room in (20, needed // 2, needed - 10):
            resize(needed + room)
            with pytest.raises(NotWritten, match=r"/model cannot be written \(No space left on device\)") as caught:
                export(backbone, heads.Ridge(), disk / "model")
            assert "\n" not in str(caught.value) and os.listdir(disk) == ["model"]
            assert Model(disk / "model").card["head"]["settings"] == "ridge, l2 3"
            assert np.isfinite(Model(disk / "model").features(images)).all()
        resize(10 * needed)
        export(backbone, heads.Ridge(), disk / "model")
        assert Model(disk / "model").card["head"]["settings"] == "ridge, l2 50"


def test_half_precision_and_one_channel_are_exported_too(tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        backbone = backbones.conv4((16, 16, 1), filters=4, seed=0)
    finally:
        keras.config.set_dtype_policy("float32")
    export(backbone, heads.Ridge(), tmp_path / "model")
    images, model = task().query[..., :1], Model(tmp_path / "model")
    found = model.features(images)
    np.testing.assert_array_equal(model.features_encoded([file_of(image[..., 0]) for image in images]), found)
    assert found.dtype == np.float32
    expected = tf.cast(backbone(images.astype(np.float32), training=False), tf.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("changed", "message"), [
    ({"head": heads.Ridge}, "head must be a head.*Received: 'Ridge'"),
    ({"backbone": keras.Sequential([keras.Input((None, None, 3)), keras.layers.GlobalAveragePooling2D()])},
     r"of a fixed size.*Received: Sequential, \(None, None, None, 3\) -> \(None, 3\)"),
    ({"class_names": ["a", "b"]}, "give support. Received:"),
    ({"support": (IMAGES, [0, 1, 1]), "class_names": ["a"]}, r"2 different names, one per class.*Received: \('a',\)"),
    ({"support": (IMAGES, [0, 1, 1]), "class_names": ["a", "a"]}, r"one per class. Received: \('a', 'a'\)"),
    ({"support": (IMAGES * 1.0, [0, 1, 1])}, r"must be uint8 \[S, H, W, 3\]. Received: float64 \(3, 16, 16, 3\)"),
    ({"support": (IMAGES, [0.0, 1.0, 1.0])}, r"must be integers \[S\]. Received: float64"),
    ({"support": (IMAGES, [0, 2, 2])}, r"support set cannot be used: every class.*Received: \[0 2 2\]"),
    ({"support": (IMAGES, [0, 1, 2**40])}, r"support set cannot be used: every class"),
])  # fmt: skip
def test_bad_arguments_are_refused_and_nothing_is_written(tmp_path, changed, message):
    arguments = {"backbone": backbones.conv4((16, 16, 3), filters=2), "head": heads.Ridge(), **changed}
    with pytest.raises(ValueError, match=message):
        export(arguments.pop("backbone"), arguments.pop("head"), tmp_path / "model", **arguments)
    assert not list(tmp_path.iterdir())
