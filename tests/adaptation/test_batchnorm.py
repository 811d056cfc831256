"""Keras layers in an adapted network behave as Keras says: frozen ones, those of training alone, and BatchNorm."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_unravel import backbones, evaluate_heads, export, heads
from tf_unravel.adaptation.batchnorm import PROTOCOLS, Adapted, protocol_of, query_logits, statistics_of
from tf_unravel.adaptation.network import Network
from tf_unravel.backbones import FusedBatchNormalization, modes
from tf_unravel.backbones.dropout import DropBlock, Dropout
from tf_unravel.data import ClassImages
from tf_unravel.deployment import Model

SUPPORT, QUERY = (np.random.default_rng(n).integers(0, 256, (n, 8, 8, 3)).astype(np.float32) for n in (6, 3))
LABELS = np.array([0, 0, 1, 1, 2, 2])
KERNEL = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
LAYERS = keras.layers


@keras.saving.register_keras_serializable(package="tests")
class Shifted(keras.layers.Layer):
    """A layer of the user's own that does something in training."""

    def call(self, inputs, training=False):
        return inputs + 1.0 if training else inputs


@keras.saving.register_keras_serializable(package="tests")
class Around(keras.Model):
    """A subclassed model around some layers, whose call has no `training`."""

    def __init__(self, *layers):
        super().__init__()
        self.inside = list(layers)

    def call(self, inputs):
        for layer in self.inside:
            inputs = layer(inputs)
        return inputs


def functional(*layers):
    inputs = keras.Input((6, 6, 4))
    outputs = inputs
    for layer in layers:
        outputs = layer(outputs)
    return keras.Model(inputs, outputs)


# What acts in training only.
INERT = {
    "dropout": lambda: LAYERS.Dropout(0.5, seed=1),
    "spatial_dropout": lambda: LAYERS.SpatialDropout2D(0.5, seed=1),
    "alpha_dropout": lambda: LAYERS.AlphaDropout(0.5, seed=1),
    "gaussian_dropout": lambda: LAYERS.GaussianDropout(0.5, seed=1),
    "gaussian_noise": lambda: LAYERS.GaussianNoise(1.0, seed=1),
    "augmentation": lambda: keras.Sequential([LAYERS.RandomFlip(seed=1), LAYERS.RandomRotation(0.3, seed=1)]),
    "own_dropout": lambda: Dropout(0.5, seed=1),
    "drop_block": lambda: DropBlock(2, 0.5, seed=1, ramp=1),
    "users": Shifted,
    "nested": lambda: Around(functional(LAYERS.Dropout(0.5, seed=1)), Shifted()),
}
# Normalisation that is the same in training and in inference, layers with state that is no batch's, nothing.
STEADY = {
    "none": lambda: LAYERS.ReLU(),
    "group": lambda: LAYERS.GroupNormalization(2),
    "layer": lambda: LAYERS.LayerNormalization(),
    "fixed": lambda: LAYERS.Normalization(mean=[0.1, 0.2, 0.0, -0.1], variance=[0.5, 1.0, 2.0, 0.1]),
    "adapted": lambda: adapted_normalization(),
    "spectral": lambda: LAYERS.SpectralNormalization(LAYERS.Conv2D(4, 1, kernel_initializer=normal(5))),
}
PLACES = {
    "flat": lambda *layers: layers,
    "functional": lambda *layers: (functional(*layers),),
    "sequential": lambda *layers: (keras.Sequential([*layers]),),
    "subclassed": lambda *layers: (Around(*layers),),
}


def adapted_normalization():
    layer = LAYERS.Normalization()
    layer.adapt(np.random.default_rng(2).normal(1.0, 2.0, (5, 6, 6, 4)))
    return layer


def normal(seed):
    return keras.initializers.RandomNormal(stddev=0.5, seed=seed)


def norm(cls, momentum=0.9, **options):
    positive = keras.initializers.RandomUniform(0.5, 2.0, seed=4)
    return cls(momentum=momentum, epsilon=0.01, gamma_initializer=normal(1), beta_initializer=normal(2),
               moving_mean_initializer=normal(3), moving_variance_initializer=positive, **options)


NORMS = {
    "own": lambda **options: norm(FusedBatchNormalization, **options),
    "stock": lambda **options: norm(keras.layers.BatchNormalization, **options),
    "stock_rows": lambda **options: norm(keras.layers.BatchNormalization, axis=1, **options),
}


def network(*middle):
    model = keras.Sequential([
        keras.Input((8, 8, 3)), LAYERS.Rescaling(1 / 127.5, -1), LAYERS.Conv2D(4, 3, kernel_initializer=normal(0)),
        *middle, LAYERS.Activation("tanh"), LAYERS.GlobalAveragePooling2D(),
    ])  # fmt: skip
    model.build((None, 8, 8, 3))
    return model


def answers(backbone):
    """Logits of the untouched network under every protocol, [Q, 3] each."""
    function = Network(backbone, 3)
    weights = [*function.weights[:-2], tf.constant(KERNEL), tf.zeros(3)]
    images = tf.constant(SUPPORT), tf.constant(QUERY)
    return {p: query_logits(Adapted(function, weights, function.state), *images, p).numpy() for p in PROTOCOLS}


def by_keras(make):
    """The same by Keras alone: calls of a model that has nothing but a BatchNorm of momentum 0 in the middle."""
    both = np.concatenate([SUPPORT, QUERY])
    running, transductive, alone, support = (make() for _ in range(4))
    one_by_one = [alone(both[[*range(6), 6 + i]], training=True)[-1] for i in range(3)]
    support(SUPPORT, training=True)
    features = {"running": running(QUERY, training=False), "transductive": transductive(QUERY, training=True),
                "one_by_one": tf.stack(one_by_one), "support": support(QUERY, training=False)}
    return {protocol: np.asarray(values) @ KERNEL for protocol, values in features.items()}


def close(got, expected):
    for protocol in PROTOCOLS:
        np.testing.assert_allclose(got[protocol], expected[protocol], rtol=1e-4, atol=1e-5, err_msg=protocol)


@pytest.mark.parametrize("inert", INERT)
def test_what_acts_in_training_only_does_nothing_to_queries_and_statistics(inert):
    layers = INERT[inert]
    plain = by_keras(lambda: network(NORMS["stock"](momentum=0.0)))
    close(answers(network(layers(), NORMS["stock"](), layers())), plain)
    still = (network()(QUERY, training=False) @ KERNEL).numpy()
    for protocol, logits in answers(network(layers())).items():
        np.testing.assert_allclose(logits, still, rtol=1e-5, atol=1e-6, err_msg=protocol)


@pytest.mark.parametrize("frozen", ["by_itself", "by_its_model", ""])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", NORMS)
def test_batchnorm_looks_at_its_batch_unless_it_is_frozen(kind, place, frozen):
    layer = NORMS[kind]()
    backbone = network(*PLACES[place](LAYERS.Dropout(0.5), layer))
    if frozen:
        (layer if frozen == "by_itself" else backbone).trainable = False
    plain = by_keras(lambda: network(NORMS[kind](momentum=0.0)))
    # one statistic is held against the whole batch's, and they are far from each other
    assert min(np.abs(plain[p] - plain["running"]).max() for p in PROTOCOLS if p != "running") > 0.1
    got = answers(backbone)
    close(got, dict.fromkeys(PROTOCOLS, plain["running"]) if frozen else plain)
    if frozen:
        for protocol in PROTOCOLS:
            np.testing.assert_array_equal(got[protocol], got["running"])


@pytest.mark.parametrize("steady", STEADY)
@pytest.mark.parametrize("trainable", [True, False])
def test_without_batchnorm_all_protocols_are_keras_inference(steady, trainable):
    backbone = network(STEADY[steady]())
    backbone.trainable = trainable
    expected = (backbone(QUERY, training=False) @ KERNEL).numpy()
    got = answers(backbone)
    close(got, dict.fromkeys(PROTOCOLS, expected))
    for protocol in PROTOCOLS:
        np.testing.assert_array_equal(got[protocol], got["running"])


@pytest.mark.parametrize("steady", ["fixed", "adapted", "spectral"])
def test_statistics_of_a_batch_leave_the_state_of_other_layers(steady):
    frozen = NORMS["stock"](name="frozen")
    frozen.trainable = False
    backbone = network(STEADY[steady](), frozen, LAYERS.Dropout(0.5), NORMS["own"](name="free"))
    function = Network(backbone, 3)
    found = statistics_of(function, function.weights, function.state, tf.constant(SUPPORT))
    for variable, before, after in zip(backbone.non_trainable_variables, function.state, found, strict=True):
        free = "free/moving" in variable.path
        assert np.array_equal(before, after) != free, variable.path


@pytest.mark.parametrize("kind", NORMS)
def test_a_momentum_of_one_has_statistics_of_a_batch_too(kind):
    expected = answers(network(NORMS[kind]()))
    close(answers(network(NORMS[kind](momentum=1.0))), expected)


@pytest.mark.parametrize("kind", ["own", "stock"])
def test_statistics_of_a_shared_layer_are_the_mean_of_its_batches(kind):
    """Called on x and on x + 2: from the batch means b and b + 2, b + 1 up to the momentum's weights."""
    layer, inputs = NORMS[kind](), keras.Input((2, 2, 4))
    outputs = LAYERS.Flatten()(layer(inputs) + layer(inputs + 2.0))
    function = Network(keras.Model(inputs, outputs), 3)
    x = tf.constant(np.random.default_rng(0).normal(size=(5, 2, 2, 4)), tf.float32)
    mean, variance = statistics_of(function, function.weights, function.state, x)
    np.testing.assert_allclose(mean, np.mean(x, (0, 1, 2)) + 2.0 / 1.9, rtol=1e-5)
    np.testing.assert_allclose(variance, np.var(x, (0, 1, 2), ddof=int(kind == "own")), rtol=1e-4)


def everything():
    """BatchNorm of both kinds, frozen, amid what acts in training only."""
    norms = [NORMS["own"](), NORMS["stock"]()]
    for layer in norms:
        layer.trainable = False
    nested = keras.Sequential([norms[1], LAYERS.GaussianNoise(0.5, seed=4)])
    return network(norms[0], LAYERS.Dropout(0.5, seed=2), nested)


def classifier(**options):
    layer = LAYERS.Dense(3, kernel_initializer=keras.initializers.Constant(KERNEL), **options)
    layer.build((None, 4))
    return layer


def test_an_adapted_frozen_network_answers_the_same_under_every_protocol_exported_too(tmp_path):
    backbone, asked = everything(), (SUPPORT[None], LABELS[None], QUERY[None])
    images = tf.constant(SUPPORT), tf.constant(LABELS, tf.int32)
    found = {}
    for protocol in ("running", "transductive", "one_by_one"):
        head = heads.FineTune(1, 0.5, classifier=classifier(), batchnorm=protocol)
        found[protocol] = head(backbone, *asked, 3)[0].numpy()
        np.testing.assert_array_equal(found[protocol], found["running"])
    settled = head.fit(backbone, images[0][None], images[1][None], 3)(QUERY[None])[0]
    np.testing.assert_allclose(settled, found["running"], rtol=1e-4, atol=1e-5)
    assert not np.allclose(found["running"], backbone(QUERY, training=False) @ KERNEL, atol=0.01)
    path = export(backbone, heads.FineTune(1, 0.5, classifier=classifier()), tmp_path / "model")
    got = Model(path).classify(QUERY.astype(np.uint8), SUPPORT.astype(np.uint8), LABELS.astype(np.int32))
    np.testing.assert_allclose(got, tf.nn.softmax(found["running"]), rtol=1e-4, atol=1e-5)
    head = Model(path).card["head"]
    assert head["batchnorm"] == "inductive (running statistics), frozen" and not head["transductive"]


def test_a_step_is_training():
    """At rate 0: what acts in training only acts on the loss of a step, and BatchNorm looks at its batch."""
    episode = tf.constant(SUPPORT), tf.constant(LABELS)
    for layers, moves in (((LAYERS.Dropout(0.5, seed=1),), True), ((Shifted(),), True), ((LAYERS.ReLU(),), False)):
        backbone = network(*layers)
        head = heads.FineTune(steps=2, learning_rate=0.0, classifier=classifier())
        function = head.network(backbone, 3)
        _, losses = head.adapt(function, head.start(function), *episode, tf.constant([0, 0]))
        logits = backbone(SUPPORT, training=False) @ KERNEL
        inference = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(LABELS, logits))
        assert np.allclose(losses[0], inference, rtol=1e-5) != moves


def test_batchnorm_that_cannot_look_at_its_batch_is_refused():
    class Deaf(keras.layers.BatchNormalization):
        def call(self, inputs, training=None, mask=None):
            return inputs

    with pytest.raises(ValueError, match="overrides call without super.*Received: Deaf"):
        answers(network(Deaf()))
    frozen = Deaf()
    frozen.trainable = False
    answers(network(frozen))

    class Hearing(keras.layers.BatchNormalization):
        def call(self, inputs, training=None, mask=None):
            return super().call(inputs, training=training, mask=mask)

    close(answers(network(norm(Hearing))), by_keras(lambda: network(NORMS["stock"](momentum=0.0))))


def test_weights_that_a_layer_assigns_to_itself_are_refused_in_a_step():
    function = Network(network(STEADY["spectral"]()), 3)
    with pytest.raises(ValueError, match="assigns to its own weights.*Received: weight '.*kernel'"):
        function.logits(function.weights, tf.constant(SUPPORT))


def test_keras_and_tensorflow_are_as_they_were_afterwards():
    call, moments = keras.layers.BatchNormalization.call, tf.nn.moments
    with pytest.raises(RuntimeError), modes.batch_statistics(), modes.twice_differentiable():
        with modes.batch_statistics():
            pass
        assert keras.layers.BatchNormalization.call is not call and tf.nn.moments is not moments
        raise RuntimeError
    assert keras.layers.BatchNormalization.call is call and tf.nn.moments is moments


@pytest.mark.parametrize(("freeze", "which", "said"), [
    ((), "all", "every weight"),
    (("backbone",), "all", "the classifier alone; the backbone is frozen"),
    (("backbone", "classifier"), "all", "nothing; the classifier is frozen, and the backbone is frozen"),
    (("conv",), "all", "every weight, except 2 of the backbone's 4 weight tensors, which are frozen"),
    (("norm",), "all", "every weight, except 2 of the backbone's 4 weight tensors, which are frozen"),
    (("conv",), "all_but_batch_norm", "the classifier alone; the rest is frozen or BatchNorm's"),
    (("classifier",), "all", "every weight, except the classifier, which is frozen"),
    (("backbone",), "last_layer", "the last layer alone (ANIL)"),
    (("classifier",), "last_layer", "nothing; the classifier is frozen"),
])  # fmt: skip
def test_an_accuracy_says_what_is_adapted(freeze, which, said):
    backbone, last = network(NORMS["stock"]()), classifier()
    parts = {"backbone": backbone, "conv": backbone.layers[1], "norm": backbone.layers[2], "classifier": last}
    for part in freeze:
        parts[part].trainable = False
    head = heads.FineTune(1, 0.5, classifier=last, adapted=which)
    assert head.said_of(backbone)[1] == f"1 steps of SGD at rate 0.5 on all support images, mean loss, {said}"
    function = head.network(backbone, 3)
    episode = tf.constant(SUPPORT), tf.constant(LABELS)
    adapted, _ = head.adapt(function, head.start(function), *episode, tf.constant([0, 0]))
    moved = [v.path for v, w in zip(function.variables, adapted, strict=True) if not np.array_equal(v, w)]
    assert (not moved) == said.startswith("nothing")
    assert all("dense" in path for path in moved) == ("alone" in said or "nothing" in said)


def test_an_accuracy_says_what_batchnorm_does():
    split = ClassImages(np.concatenate([SUPPORT, SUPPORT]).astype(np.uint8), np.repeat(np.arange(3), 4), tuple("abc"),
                        "toy")
    tasks = {"ways": 3, "shots": 1, "queries": 1, "num_tasks": 2}
    steady, norms = network(), network(NORMS["own"](), NORMS["stock"]())
    fine_tune = heads.FineTune(0, batchnorm="transductive")
    assert protocol_of(norms, "transductive") == PROTOCOLS["transductive"].said
    for accuracies in evaluate_heads(steady, [fine_tune, heads.Prototypes()], split, **tasks).values():
        assert accuracies[1].batchnorm == "none in this network"
    assert heads.said_of(heads.Prototypes(), norms) == (PROTOCOLS["running"].said, "")
    norms.layers[2].trainable = False
    assert fine_tune.said_of(norms)[0].endswith(", but 1 of 2 layers frozen on running statistics")
    norms.trainable = False
    assert heads.said_of(fine_tune, norms)[0] == "inductive (running statistics), frozen"
    assert protocol_of(norms, "running") == PROTOCOLS["running"].said


@pytest.mark.parametrize(("options", "said"), [
    ({"activation": "relu"}, "activation relu"), ({"lora_rank": 1}, "LoRA"),
])  # fmt: skip
def test_a_classifier_that_is_more_than_linear_is_refused(options, said):
    with pytest.raises(ValueError, match=f"plain linear layer. Received: {said}"):
        Network(network(), 3, classifier(**options))


def test_backbones_of_the_package_are_unchanged_by_freezing_what_is_frozen():
    backbone = backbones.r2d2((16, 16, 3), filters=(4, 4, 4, 4), seed=0)
    backbone.trainable = False
    images = tf.constant(np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3)), tf.float32)
    function = Network(backbone, 3)
    weights = [tf.ones_like(weight) for weight in function.weights]
    for protocol in PROTOCOLS:
        logits = query_logits(Adapted(function, weights, function.state), images, images, protocol)
        np.testing.assert_allclose(logits[:, 0], tf.reduce_sum(backbone(images, training=False), 1) + 1.0, rtol=1e-5)
