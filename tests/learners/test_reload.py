"""Learners that are saved and loaded: parts of the user's own are found, or the line says how they are."""

import keras
import pytest
import tensorflow as tf

from tests.learners.problems import small_network
from tf_unravel import heads, learners
from tf_unravel.adaptation import inner_optimizers


class Nearest:
    """A head that Keras and `heads.by_name` do not know."""

    name = "nearest_of_the_test"

    def __init__(self, factor=1.0):
        self.factor = factor

    def __call__(self, support, labels, query, ways):
        return self.factor * heads.Prototypes()(support, labels, query, ways)


class Renamed(Nearest):
    """One whose attributes are not the arguments of its constructor."""

    def __init__(self, factor=1.0):
        self.by = factor


class Nameless(Nearest):
    """One without a name."""

    name = None


class Slow(heads.SGD):
    """An inner optimizer of one's own."""

    name = "slow_of_the_test"


def mean_of_features(features, class_ids):
    return tf.reduce_mean(features)


def reloaded(learner, path):
    learner.compile(optimizer="sgd")
    learner.save(path / "learner.keras")
    return keras.models.load_model(path / "learner.keras")


LINES = {
    "head": (lambda: learners.Episodic(small_network(), Nearest()),
             r"Episodic.head is of a class of its own: register it .* heads.by_name\['nearest_of_the_test'\] = "),
    "nameless head": (lambda: learners.Episodic(small_network(), Nameless()), "needs a name, .* Received: Nameless"),
    "regularizer": (lambda: learners.Classical(small_network(), 4, mean_of_features),
                    r"learner's regularizer cannot be made again: .*register_keras_serializable\(\)"),
    "inner optimizer": (lambda: learners.Reptile(small_network(), 3, inner_optimizer=Slow()),
                        r"Reptile.inner_optimizer is of a class of its own: .*by_name\['slow_of_the_test'\]"),
}  # fmt: skip


@pytest.mark.parametrize("part", LINES)
def test_a_part_that_is_not_found_is_one_line(part, tmp_path):
    build, line = LINES[part]
    with pytest.raises(ValueError, match=line) as caught:
        reloaded(build(), tmp_path)
    assert "\n" not in str(caught.value)


def test_attributes_that_are_no_arguments_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(heads.by_name, Renamed.name, Renamed)
    with pytest.raises(ValueError, match="attributes of Renamed must be the arguments .* Received: by"):
        reloaded(learners.Episodic(small_network(), Renamed()), tmp_path)


def test_registered_parts_are_found(tmp_path, monkeypatch):
    monkeypatch.setitem(heads.by_name, Nearest.name, Nearest)
    monkeypatch.setitem(inner_optimizers.by_name, Slow.name, Slow)
    assert reloaded(learners.Episodic(small_network(), Nearest(3.0)), tmp_path).head.factor == 3.0
    assert isinstance(reloaded(learners.Reptile(small_network(), 3, inner_optimizer=Slow(0.3)), tmp_path)
                      .inner_optimizer, Slow)


def test_a_reloaded_learner_is_compiled_as_it_was(tmp_path):
    learner = learners.Classical(small_network(), 4)
    learner.compile(optimizer=keras.optimizers.Adam(0.01, use_ema=True), metrics=["accuracy"], steps_per_execution=3)
    learner.save(tmp_path / "learner.keras")
    again = keras.models.load_model(tmp_path / "learner.keras")
    assert again.optimizer.use_ema and again.optimizer.built and again.steps_per_execution == 3
    assert again._compile_metrics is not None
