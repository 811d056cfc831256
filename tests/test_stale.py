"""Nothing stale: an answer belongs to the network and the settings at the moment of the call."""

import copy
import dataclasses
import gc
import pickle
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import make_split
from tf_unravel import backbones, data, evaluate, heads, learners
from tf_unravel.adaptation.inner_optimizers import PerStepSGD
from tf_unravel.backbones.graphs import Snapshot
from tf_unravel.evaluation import features
from tf_unravel.evaluation.features import extract_features

SPLIT = make_split(size=8)


def tiny(seed=0):
    """One convolution and BatchNorm, images [B, 8, 8, 3] -> [B, 3]: quick to trace."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential([
        keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 127.5, -1), keras.layers.Conv2D(3, 3),
        keras.layers.BatchNormalization(), keras.layers.ReLU(), keras.layers.GlobalAveragePooling2D(),
    ])  # fmt: skip


def task():
    return next(iter(data.episodes(SPLIT, ways=3, shots=2, queries=2, tasks_per_batch=2)))[:3]


def answered(head, backbone):
    return head(backbone, *task(), 3).numpy()


def dense(value=1.0):
    layer = keras.layers.Dense(3)
    layer.build((None, 3))
    layer.kernel.assign(value * np.random.default_rng(0).normal(size=(3, 3)))
    return layer


def remembered():
    """Second moments of one, of the tiny network and the classifier above."""
    start = heads.Adam().start([variable.value for variable in tiny().trainable_variables + dense().variables])
    return start._replace(second=[second + 1.0 for second in start.second])


SETTINGS = {
    "steps": 5, "learning_rate": 0.3, "optimizer": heads.Adam(0.01), "adapted": "last_layer", "batch_size": 2,
    "batchnorm": "transductive", "classifier": dense(3.0), "sum_over_batch": True,
}  # fmt: skip


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_of_fine_tuning_that_is_changed_counts(setting):
    backbone, start = tiny(), {"steps": 2, "learning_rate": 0.1, "classifier": dense()}
    head = heads.FineTune(**start)
    first = answered(head, backbone)
    setattr(head, setting, SETTINGS[setting])
    fresh = heads.FineTune(**{**start, setting: SETTINGS[setting]})
    again = answered(head, backbone)
    np.testing.assert_array_equal(again, answered(fresh, backbone))
    assert not np.allclose(again, first)
    assert (head.adaptation, head.batchnorm) == (fresh.adaptation, fresh.batchnorm)


def test_a_seed_moments_and_rates_that_are_changed_count():
    backbone = tiny()
    head = heads.FineTune(steps=3, batch_size=2, learning_rate=0.1)
    first = answered(head, backbone)
    head.seed = 5
    np.testing.assert_array_equal(answered(head, backbone),
                                  answered(heads.FineTune(3, 0.1, batch_size=2, seed=5), backbone))
    assert not np.allclose(answered(head, backbone), first)
    adam = heads.FineTune(steps=2, optimizer=heads.Adam(0.01), classifier=dense())
    first, moments = answered(adam, backbone), remembered()
    adam.moments = lambda: moments
    assert not np.allclose(answered(adam, backbone), first)
    rates = np.full((2, len(backbone.trainable_variables) + 2), 0.1, np.float32)
    head.optimizer = PerStepSGD(rates)
    first = answered(head, backbone)
    rates *= 3  # in place
    assert not np.allclose(answered(head, backbone), first)
    first = answered(head, backbone)
    head.optimizer.factor = 2.0
    assert not np.allclose(answered(head, backbone), first)


@pytest.mark.parametrize(("setting", "value"), [
    ("steps", -1), ("batch_size", 0), ("batchnorm", "mine"), ("learning_rate", -1.0), ("adapted", "some"),
    ("optimizer", "adam"), ("parallel_tasks", 0),
])  # fmt: skip
def test_a_bad_setting_is_refused_however_it_is_given(setting, value):
    head = heads.FineTune(steps=1)
    with pytest.raises(ValueError, match=r"Received: ") as caught:
        setattr(head, setting, value)
        answered(head, tiny())
    assert "\n" not in str(caught.value)


def test_rates_of_every_step_are_not_replaced_by_one():
    head = heads.FineTune(optimizer=PerStepSGD(tf.ones([1, 8])))
    with pytest.raises(AttributeError, match="set optimizer"):
        head.learning_rate = 0.1


def network(*middle):
    keras.utils.set_random_seed(0)
    return keras.Sequential([
        keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 127.5, -1), keras.layers.Conv2D(8, 3), *middle,
        keras.layers.ReLU(), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(6, name="last"),
    ])  # fmt: skip


def last(backbone):
    return backbone.get_layer("last")


def swapped(backbone):
    backbone.pop()
    backbone.add(keras.layers.Dense(6, kernel_initializer="ones"))


CHANGES = {
    "frozen": lambda backbone: setattr(last(backbone), "trainable", False),
    "all_frozen": lambda backbone: setattr(backbone, "trainable", False),
    "lora": lambda backbone: (last(backbone).enable_lora(2), last(backbone).lora_kernel_b.assign(np.ones((2, 6)))),
    "quantised": lambda backbone: backbone.quantize("int8"),
    "another_layer": swapped,
    "dtype_policy": lambda backbone: setattr(last(backbone), "dtype_policy", "mixed_float16"),
    "activation": lambda backbone: setattr(last(backbone), "activation", keras.activations.tanh),
    "scale": lambda backbone: setattr(backbone.layers[0], "scale", 0.1),
}
SEEN_BY_FEATURES = sorted(set(CHANGES) - {"frozen", "all_frozen"})


@pytest.mark.parametrize("change", CHANGES)
def test_a_network_that_is_changed_after_its_first_use_is_traced_anew(change):
    backbone = network()
    # nothing but the last layer may be adapted, or LoRA and int8 have nothing to do
    head = heads.FineTune(steps=3, learning_rate=0.1, batchnorm="running")
    first, logits = extract_features(backbone, SPLIT.images[:8]), answered(head, backbone)
    CHANGES[change](backbone)
    again = extract_features(backbone, SPLIT.images[:8])
    expected = np.asarray(backbone(SPLIT.images[:8].astype(np.float32), training=False), np.float32)
    np.testing.assert_allclose(again, expected, rtol=1e-3, atol=1e-3)
    if change in SEEN_BY_FEATURES:
        assert not np.array_equal(again, first)
    fresh = heads.FineTune(steps=3, learning_rate=0.1, batchnorm="running")
    np.testing.assert_array_equal(answered(head, backbone), answered(fresh, backbone))
    assert not np.array_equal(answered(head, backbone), logits)


class Own(keras.Model):
    """A subclass, built by its first call."""

    def __init__(self):
        super().__init__()
        self.convolution, self.pool = keras.layers.Conv2D(4, 3), keras.layers.GlobalAveragePooling2D()
        self._factor = 1.0

    def call(self, images, training=False):
        return self._factor * self.pool(self.convolution(images))


KEPT = {
    "conv4": lambda: backbones.conv4((16, 16, 3), filters=3, seed=0),
    "r2d2": lambda: backbones.r2d2((16, 16, 3), filters=(4, 4, 4, 4), seed=0),
    "stock": lambda: network(keras.layers.BatchNormalization(), keras.layers.Dropout(0.2)),
    "nested": lambda: keras.Sequential([keras.Input((8, 8, 3)), network(keras.layers.BatchNormalization())]),
    "augmenting": lambda: network(keras.layers.RandomFlip(), keras.layers.GaussianNoise(0.1)),
}  # fmt: skip


@pytest.mark.parametrize("kind", KEPT)
def test_new_values_and_training_need_no_new_trace(kind):
    backbone, head = KEPT[kind](), heads.FineTune(steps=1)
    images = SPLIT.images if backbone.input_shape[1] == 8 else SPLIT.images.repeat(2, axis=1).repeat(2, axis=2)
    tasks = images[None, :60:10], np.array([[0, 0, 0, 1, 1, 2]]), images[None, 60:62]
    learner = learners.Classical(backbone, 6)
    learner.compile(optimizer=keras.optimizers.SGD(0.1))
    forward, run = features._compiled(backbone), head._compiled(backbone, 3, head.answers)
    head(backbone, *tasks, 3)
    before = extract_features(backbone, images[:8])
    learner.fit(images[:60], SPLIT.class_ids[:60], batch_size=30, verbose=0)
    backbone(images[:1].astype(np.float32), training=True)
    head(backbone, *tasks, 3)
    assert not np.array_equal(extract_features(backbone, images[:8]), before)
    assert features._compiled(backbone) is forward and forward.experimental_get_tracing_count() == 1
    assert head._compiled(backbone, 3, head.answers) is run and run.experimental_get_tracing_count() == 1


def test_a_setting_of_a_subclassed_network_counts():
    backbone = Own()
    before = extract_features(backbone, SPLIT.images[:4])
    backbone._factor = 2.0
    np.testing.assert_allclose(extract_features(backbone, SPLIT.images[:4]), 2 * before, rtol=1e-5)


def test_what_is_no_keras_model_is_traced_by_every_call():
    factor = [1.0]

    def mean(images, training):
        return factor[0] * tf.reduce_mean(images, axis=(1, 2))

    before = extract_features(mean, SPLIT.images[:4])
    factor[0] = 2.0
    np.testing.assert_allclose(extract_features(mean, SPLIT.images[:4]), 2 * before)


def test_fine_tuning_keeps_no_backbone_alive_and_takes_none_for_another():
    """A later model may stand at the address of one that is gone."""
    head, gone = heads.FineTune(steps=1, learning_rate=0.1), []
    for seed in range(3):
        backbone = tiny(seed)
        np.testing.assert_array_equal(answered(head, backbone), answered(heads.FineTune(1, 0.1), backbone))
        gone.append(weakref.ref(backbone))
        del backbone
        gc.collect()
    assert [each() for each in gone] == [None] * 3 and len(head._graphs) == 0


COPIES = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda head: pickle.loads(pickle.dumps(head))}


def all_heads(backbone):
    maml = learners.MAML(backbone, 3, inner_steps=2, learn_rates=True)
    reptile = learners.Reptile(backbone, 3, evaluation_steps=2, evaluation_batch=3)
    reptile.second_moments[0].assign(tf.ones_like(reptile.second_moments[0]))
    return {"plain": heads.FineTune(steps=2), "maml": maml.own_head(), "reptile": reptile.own_head()}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("kind", ["plain", "maml", "reptile"])
def test_a_head_that_was_used_can_be_copied(way, kind):
    backbone = tiny()
    head = all_heads(backbone)[kind]
    used = answered(head, backbone)
    other = COPIES[way](head)
    np.testing.assert_allclose(answered(other, backbone), used, rtol=1e-5, atol=1e-6)
    other.steps = 7  # the copy's own graphs
    assert not np.allclose(answered(other, backbone), used)
    np.testing.assert_array_equal(answered(head, backbone), used)


def test_a_deep_copy_stays_as_it_was():
    backbone = tiny()
    learner = learners.Reptile(backbone, 3, evaluation_steps=2)
    head = copy.deepcopy(learner.own_head())
    before = answered(head, backbone)
    learner.second_moments[0].assign(tf.ones_like(learner.second_moments[0]))
    learner.classifier.kernel.assign_add(tf.ones_like(learner.classifier.kernel))
    np.testing.assert_array_equal(answered(head, backbone), before)
    assert not np.allclose(answered(learner.own_head(), backbone), before)


@dataclasses.dataclass(frozen=True)
class Frozen:
    """A user's head whose fields are frozen, and what they hold is not."""

    factors: list = dataclasses.field(default_factory=lambda: [1.0], compare=False)
    weight: object = None
    name = "frozen"

    def logits(self, inner, support_labels, ways):
        factor = self.factors[0] * (1.0 if self.weight is None else tf.cast(self.weight, tf.float32))
        return factor * heads.Prototypes().logits(inner, support_labels, ways)


class Signed(heads.Ridge):
    """A subclass that is no dataclass of its own: its equality and hash are Ridge's."""

    sign = 1.0

    def logits(self, inner, support_labels, ways):
        return self.sign * super().logits(inner, support_labels, ways)


def accuracy(head):
    values = SPLIT.images.reshape(len(SPLIT.images), -1).astype(np.float32)[:, ::8] / 255
    return evaluate(values, head, SPLIT, ways=3, shots=1, queries=3, num_tasks=200).mean


def test_what_a_head_holds_counts_in_every_evaluation():
    head = Frozen()
    plain = accuracy(head)
    head.factors[0] = -1.0
    assert accuracy(head) < plain
    variable = tf.Variable(1.0)
    head = Frozen(weight=variable)
    assert accuracy(head) == plain
    variable.assign(-1.0)
    assert accuracy(head) < plain
    signed, plain = Signed(), accuracy(heads.Ridge())
    assert accuracy(signed) == plain
    vars(signed)["sign"] = -1.0
    assert accuracy(signed) < plain
    Signed.sign = -1.0
    try:
        assert accuracy(Signed()) < plain
    finally:
        Signed.sign = 1.0
    assert accuracy(heads.Ridge(l2=np.array(50.0))) == plain


def test_snapshots_match_what_is_the_same():
    model, settings = tiny(), {"a": [1, 2.5, float("nan")], "b": np.arange(3), "c": heads.Adam()}
    taken = Snapshot(model, settings)
    assert taken.matches(Snapshot(model, copy.deepcopy(settings)))
    for key, value in {"a": [1, 2, float("nan")], "b": np.arange(4), "c": heads.Adam(0.5)}.items():
        assert not taken.matches(Snapshot(model, {**settings, key: value}))
    assert not taken.matches(Snapshot(tiny(), settings))
    assert not Snapshot(1).matches(Snapshot(True)) and not Snapshot(1).matches(Snapshot(1.0))
