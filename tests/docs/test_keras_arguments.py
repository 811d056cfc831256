"""docs/keras_arguments.md: every cell of its tables is run, and every public argument of Keras's methods has a row."""

import contextlib
import functools
import inspect
import io
import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.docs.pages import ROOT
from tests.learners.test_keras_losses import AddsLoss
from tf_unravel import heads, learners
from tf_unravel.data.sampling.tasks import Episode

LEARNERS = ("Classical", "Episodic", "MAML", "Reptile")
METHODS = ("compile", "fit", "evaluate", "predict", "train_on_batch", "test_on_batch", "predict_on_batch")


def tables() -> tuple[dict, dict, dict[str, str]]:
    """({(method, argument): cells}, {(what, case): cells}, {letter: pattern of the line})."""
    sections = (ROOT / "docs/keras_arguments.md").read_text(encoding="utf-8").split("\n## ")
    found: list[dict] = []
    for section in sections[1:4]:
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "|" in line]
        found.append({tuple(cell.strip("`") for cell in row[:2]): row[2:] for row in rows[2:]})
    arguments, cases, lines = found
    return arguments, cases, {letter: _pattern(line) for letter, line in lines}


def _pattern(line: str) -> str:
    return "^" + ".*".join(re.escape(part) for part in re.split(r"<[^>]*>", line)) + ".*$"


ARGUMENTS, CASES, LINES = tables()


def cells(table: dict) -> list:
    return [pytest.param(*row, learner, cell, id="-".join((*row, learner)))
            for row, answers in table.items() for learner, cell in zip(LEARNERS, answers, strict=True)]


# Four rows for each learner: images, or tasks.

RNG = np.random.default_rng(0)
IMAGES, IDS = RNG.integers(0, 256, (4, 8, 8, 3)).astype(np.float32), np.arange(4, dtype=np.int32)
TASKS = Episode(
    RNG.integers(0, 256, (4, 4, 8, 8, 3)).astype(np.float32), np.tile(np.int32([0, 0, 1, 1]), (4, 1)),
    RNG.integers(0, 256, (4, 4, 8, 8, 3)).astype(np.float32), np.tile(np.int32([0, 1, 0, 1]), (4, 1)),
)  # fmt: skip
INNER = RNG.integers(0, 256, (4, 1, 2, 8, 8, 3)).astype(np.float32), np.tile(np.int32([0, 1]), (4, 1, 1))
ROWS = {"Classical": {"x": IMAGES, "y": IDS}, "Episodic": {"x": TASKS}, "MAML": {"x": TASKS},
        "Reptile": {"x": INNER[0], "y": INNER[1]}}


def network(*behind, **dense) -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 127.5, -1), keras.layers.Flatten(),
                             keras.layers.Dense(3, **dense), *behind])


def learner_of(name: str, backbone: Any = None, **compiled) -> Any:
    """A learner, compiled to run eagerly, so that nothing is traced and every step is seen."""
    backbone = network() if backbone is None else backbone
    made = {
        "Classical": lambda: learners.Classical(backbone, 4),
        "Episodic": lambda: learners.Episodic(backbone, heads.Ridge()),
        "MAML": lambda: learners.MAML(backbone, 2, 1),
        "Reptile": lambda: learners.Reptile(backbone, 2, 1, 2, inner_optimizer=heads.SGD(0.1)),
    }[name]()
    made.compile(**({"optimizer": keras.optimizers.SGD(0.5), "run_eagerly": True} | compiled))
    return made


def weights(learner: Any) -> list[np.ndarray]:
    return [weight.numpy() for weight in learner.trainable_variables]


def distance(some: list[np.ndarray], others: list[np.ndarray]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(some, others, strict=True))


class Seen(keras.callbacks.Callback):
    """What a call did: epochs, and the first pixel of every row of every batch, which tells the row."""

    def __init__(self):
        super().__init__()
        self.epochs, self.batches, self.tested, self.weights = [], [], [], []

    def watch(self, learner: Any) -> Any:
        for step, kept in (("train_step", self.batches), ("test_step", self.tested), ("predict_step", self.tested)):
            setattr(learner, step, self._recorded(getattr(learner, step), kept))
        return learner

    @staticmethod
    def _recorded(step: Callable, kept: list) -> Callable:
        def recorded(data):
            images = tf.nest.flatten(data)[0]
            kept.append([int(row) for row in np.reshape(images, (len(images), -1))[:, :9].sum(axis=1)])
            return step(data)

        return recorded

    def on_epoch_begin(self, epoch, logs=None):
        self.epochs.append(epoch)

    def on_train_batch_end(self, batch, logs=None):
        self.weights.append(weights(self.model))


def row_numbers(name: str) -> list[int]:
    """What `Seen` keeps of each of the four rows."""
    images = tf.nest.flatten(ROWS[name]["x"])[0]
    return [int(row) for row in images.reshape(4, -1)[:, :9].sum(axis=1)]


@functools.cache
def fitted(name: str) -> tuple[Seen, Any]:
    """One call of `fit` with every argument that only says how often, and on what."""
    seen = Seen()
    given = ROWS[name]
    validation = given["x"] if "y" not in given else (given["x"], given["y"])
    validation = tf.data.Dataset.from_tensors(validation).unbatch().batch(4) if isinstance(validation, Episode) else (
        validation)
    arrays = {} if isinstance(validation, tf.data.Dataset) else {"validation_batch_size": 2}
    history = seen.watch(learner_of(name)).fit(
        **given, batch_size=1, epochs=3, initial_epoch=1, steps_per_epoch=2, shuffle=False, callbacks=[seen],
        validation_data=validation, validation_steps=1, validation_freq=2, verbose=0, **arrays,
    )  # fmt: skip
    return seen, history.history


def check_rows(name: str) -> None:
    seen, history = fitted(name)
    assert seen.batches[:2] == [[row] for row in row_numbers(name)[:2]]
    assert np.isfinite(history["loss"]).all()


def check_count(name: str) -> None:
    seen, history = fitted(name)
    assert seen.epochs == [1, 2] and len(seen.batches) == 4 == len(seen.weights)
    assert len(seen.tested) == 1 and len(history["val_loss"]) == 1


def check_validation_batch(name: str) -> None:
    seen = Seen()
    learner = seen.watch(learner_of(name))
    x, y = ROWS[name]["x"], ROWS[name].get("y")
    learner.fit(**ROWS[name], validation_data=(x,) if y is None else (x, y), validation_batch_size=2, verbose=0)
    rows = row_numbers(name)
    assert seen.tested == [rows[:2], rows[2:]]


def check_split(name: str) -> None:
    seen, rows = Seen(), row_numbers(name)
    seen.watch(learner_of(name)).fit(**ROWS[name], validation_split=0.5, shuffle=False, verbose=0)
    assert seen.batches == [rows[:2]] and seen.tested == [rows[2:]]


def check_shuffle(name: str) -> None:
    seen, rows = Seen(), row_numbers(name)
    keras.utils.set_random_seed(1)
    seen.watch(learner_of(name)).fit(**ROWS[name], shuffle=True, epochs=4, verbose=0)
    assert any(batch != rows for batch in seen.batches) and all(sorted(batch) == sorted(rows) for batch in seen.batches)


def check_verbose(method: str, name: str) -> None:
    given = {"x": IMAGES} if method == "predict" else ROWS[name]
    for verbose in (0, 2):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            getattr(learner_of(name), method)(**given, verbose=verbose)
        assert bool(printed.getvalue()) == (verbose > 0)


def check_zero_weights(method: str, argument: str, name: str) -> None:
    """Weights of zero leave no cross-entropy; what Keras makes of others is the reference of test_keras_losses."""
    value = dict.fromkeys(range(4), 0.0) if argument == "class_weight" else np.zeros(4)
    learner = learner_of(name)
    before = weights(learner)
    quiet = {} if method.endswith("batch") else {"verbose": 0}
    values = getattr(learner, method)(**ROWS[name], **{argument: value}, **quiet,
                                      **({} if method == "fit" else {"return_dict": True}))
    values = {key: each[-1] for key, each in values.history.items()} if method == "fit" else values
    assert values["loss"] == values["cross_entropy"] == 0 and distance(before, weights(learner)) == 0


def check_evaluate(name: str) -> None:
    seen, rows = Seen(), row_numbers(name)
    learner = seen.watch(learner_of(name))
    found = learner.evaluate(**ROWS[name], batch_size=1, steps=3, callbacks=[seen], return_dict=True, verbose=0)
    assert seen.tested == [[row] for row in rows[:3]] and set(found) == set(learner.tracked)
    assert isinstance(learner.evaluate(**ROWS[name], verbose=0), list)


def check_predict(name: str) -> None:
    seen = Seen()
    learner = seen.watch(learner_of(name))
    logits = learner.predict(IMAGES, batch_size=1, steps=3, callbacks=[seen], verbose=0)
    np.testing.assert_allclose(logits, learner(IMAGES)[:3], rtol=1e-5)
    assert len(seen.tested) == 3
    np.testing.assert_allclose(learner.predict_on_batch(IMAGES), learner(IMAGES), rtol=1e-5)


def check_on_batch(method: str, name: str) -> None:
    learner = learner_of(name)
    before = weights(learner)
    values = getattr(learner, method)(**ROWS[name], return_dict=True)
    assert set(values) == set(learner.tracked) and np.isfinite(values["loss"])
    assert (distance(before, weights(learner)) > 0) == (method == "train_on_batch")
    assert isinstance(getattr(learner, method)(**ROWS[name]), list)


@functools.cache
def compiled_once(name: str) -> None:
    """Steps in graphs, by XLA, two at a time, do what eager ones do: four arguments for one tracing."""
    asked, eager = Seen(), learner_of(name)
    with_xla = name == "Classical"
    graphs = learner_of(name, run_eagerly=False, jit_compile=with_xla, steps_per_execution=2)
    eager.fit(**ROWS[name], batch_size=1, shuffle=False, verbose=0)
    graphs.fit(**ROWS[name], batch_size=1, shuffle=False, verbose=0, callbacks=[asked])
    assert eager.run_eagerly and graphs.jit_compile == with_xla and not graphs.run_eagerly and len(asked.weights) == 2
    assert distance(weights(eager), weights(graphs)) < 1e-4 < distance(weights(eager), weights(learner_of(name)))


def check_optimizer(name: str) -> None:
    for rate, moves in ((0.0, False), (0.5, True)):
        learner = learner_of(name, optimizer=keras.optimizers.SGD(rate))
        before = weights(learner)
        learner.train_on_batch(**ROWS[name])
        assert (distance(before, weights(learner)) > 0) == moves


def check_metrics(argument: str, name: str) -> None:
    metric = keras.metrics.SparseTopKCategoricalAccuracy(4, name="top4")
    values = learner_of(name, **{argument: [metric]}).evaluate(**ROWS[name], verbose=0, return_dict=True)
    assert values["top4"] == 1.0


def under(policy: str, build: Callable = network) -> keras.Model:
    keras.config.set_dtype_policy(policy)
    try:
        return build()
    finally:
        keras.config.set_dtype_policy("float32")


def check_loss_scale(name: str) -> None:
    for asked in (True, False):
        learner = learner_of(name, under("mixed_float16"), auto_scale_loss=asked)
        assert isinstance(learner.optimizer, keras.optimizers.LossScaleOptimizer) == asked


CHECKS: dict[tuple[str, str], Callable[[str], None]] = {
    ("compile", "optimizer"): check_optimizer,
    ("compile", "metrics"): functools.partial(check_metrics, "metrics"),
    ("compile", "weighted_metrics"): functools.partial(check_metrics, "weighted_metrics"),
    ("compile", "auto_scale_loss"): check_loss_scale,
    **dict.fromkeys((("compile", name) for name in ("run_eagerly", "steps_per_execution", "jit_compile")),
                    compiled_once),
    **dict.fromkeys((("fit", name) for name in ("x", "y", "batch_size")), check_rows),
    **dict.fromkeys((("fit", name) for name in (
        "epochs", "callbacks", "initial_epoch", "steps_per_epoch", "validation_data", "validation_steps",
        "validation_freq")), check_count),
    ("fit", "validation_batch_size"): check_validation_batch,
    ("fit", "validation_split"): check_split,
    ("fit", "shuffle"): check_shuffle,
    **{(method, "verbose"): functools.partial(check_verbose, method) for method in ("fit", "evaluate", "predict")},
    **{(method, argument): functools.partial(check_zero_weights, method, argument)
       for method in ("fit", "evaluate", "train_on_batch", "test_on_batch")
       for argument in ("class_weight", "sample_weight")},
    **dict.fromkeys((("evaluate", name) for name in ("x", "y", "batch_size", "steps", "callbacks", "return_dict")),
                    check_evaluate),
    **dict.fromkeys((("predict", name) for name in ("x", "batch_size", "steps", "callbacks")), check_predict),
    ("predict_on_batch", "x"): check_predict,
    **{(method, argument): functools.partial(check_on_batch, method)
       for method in ("train_on_batch", "test_on_batch") for argument in ("x", "y", "return_dict")},
}  # fmt: skip

REFUSED: dict[str, Any] = {
    "loss": "mse", "loss_weights": [1.0], "metrics": ["accuracy"], "weighted_metrics": ["accuracy"], "y": IDS,
    "class_weight": {0: 2.0}, "sample_weight": np.ones(4), "jit_compile": True,
}  # fmt: skip


def refused_call(method: str, argument: str, name: str) -> None:
    """The call that a row refuses."""
    if method == "compile":
        learner_of(name, **{argument: REFUSED[argument]})
    elif method.startswith("predict"):
        getattr(learner_of(name), method)(IMAGES)
    else:
        getattr(learner_of(name), method)(**(ROWS[name] | {argument: REFUSED[argument]}))


@contextlib.contextmanager
def one_line(letter: str):
    with pytest.raises(ValueError) as caught:
        yield
    assert re.match(LINES[letter], str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("method", "argument", "name", "cell"), cells(ARGUMENTS))
def test_an_argument_is_honoured_or_refused(method, argument, name, cell):
    if cell == "yes":
        CHECKS[method, argument](name)
    else:
        with one_line(cell):
            refused_call(method, argument, name)


def test_the_table_has_every_public_argument():
    public = {(method, argument) for method in METHODS
              for argument in list(inspect.signature(getattr(keras.Model, method)).parameters)[1:]
              if argument != "kwargs"}
    assert set(ARGUMENTS) == public


class Subclassed(keras.Model):
    """A model without a graph of layers."""

    def __init__(self):
        super().__init__()
        self.inner = network()

    def call(self, images, training=False):
        return self.inner(images, training=training)


def built(model: keras.Model) -> keras.Model:
    model(IMAGES)
    return model


def several(inputs: int, outputs: int) -> keras.Model:
    given = [keras.Input((8, 8, 3)) for _ in range(inputs)]
    features = keras.layers.Flatten()(given[0])
    return keras.Model(given if inputs > 1 else given[0], [features] * outputs if outputs > 1 else features)


def channels_first() -> keras.Model:
    keras.config.set_image_data_format("channels_first")
    try:
        return keras.Sequential([keras.Input((8, 8, 3)), keras.layers.GlobalAveragePooling2D()])
    finally:
        keras.config.set_image_data_format("channels_last")


def train_once(name: str, backbone: Callable[[], keras.Model]) -> None:
    learner = learner_of(name, backbone())
    before = weights(learner)
    assert np.isfinite(learner.train_on_batch(**ROWS[name])[0])
    assert distance(before, weights(learner)) > 0


def adds_to_the_loss(name: str, backbone: Callable[[], keras.Model]) -> None:
    """By how much, and to which gradient: test_keras_losses."""
    plain, more = (learner_of(name, each).evaluate(**ROWS[name], verbose=0, return_dict=True)["loss"]
                   for each in (network(bias_initializer="ones"), backbone()))
    assert more > plain + 0.01


def averages(name: str) -> None:
    seen = Seen()
    optimizer = keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.5)
    learner = learner_of(name, optimizer=optimizer)
    learner.fit(**ROWS[name], batch_size=2, verbose=0, callbacks=[seen])
    first, second = seen.weights
    expected = [0.5 * a + 0.5 * b for a, b in zip(first, second, strict=True)]
    assert distance(weights(learner), expected) < 1e-6 < distance(first, second)


def without_optimizer(name: str) -> None:
    learner = learner_of(name, optimizer=None)
    assert np.isfinite(learner.evaluate(**ROWS[name], verbose=0)[0])
    learner.fit(**ROWS[name], verbose=0)


SITUATIONS: dict[str, Callable[[str], None]] = {
    "none, when training": without_optimizer,
    "use_ema": averages,
    "kernel_regularizer": lambda name: adds_to_the_loss(name, lambda: network(kernel_regularizer="l2")),
    "bias_regularizer": lambda name: adds_to_the_loss(
        name, lambda: network(bias_regularizer="l2", bias_initializer="ones")),
    "activity_regularizer": lambda name: adds_to_the_loss(
        name, lambda: network(activity_regularizer="l2", bias_initializer="ones")),
    "add_loss": lambda name: adds_to_the_loss(name, lambda: network(AddsLoss(), bias_initializer="ones")),
    "subclassed, built": lambda name: train_once(name, lambda: built(Subclassed())),
    "not built": lambda name: train_once(name, Subclassed),
    "gives a feature map [B, h, w, D]": lambda name: train_once(
        name, lambda: keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3)])),
    "several outputs": lambda name: train_once(name, lambda: several(1, 2)),
    "several inputs": lambda name: train_once(name, lambda: several(2, 1)),
    "channels_first": lambda name: train_once(name, channels_first),
    **{policy: functools.partial(lambda policy, name: train_once(name, lambda: under(policy)), policy)
       for policy in ("float32", "float64", "mixed_float16", "mixed_bfloat16", "float16", "bfloat16")},
}  # fmt: skip


@pytest.mark.parametrize(("what", "case", "name", "cell"), cells(CASES))
def test_a_network_an_optimizer_a_number_type_is_honoured_or_refused(what, case, name, cell):
    if cell == "yes":
        SITUATIONS[case](name)
    else:
        with one_line(cell):
            SITUATIONS[case](name)
