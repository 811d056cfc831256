"""Fine-tuning as a head: the same as training a copy by hand, the BatchNorm protocols, nothing left behind."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import make_split
from tests.learners.problems import pictures, small_network
from tf_unravel import backbones, data, evaluate, evaluate_heads, heads
from tf_unravel.adaptation import batchnorm
from tf_unravel.adaptation import network as network_module
from tf_unravel.adaptation.inner_loop import batch_orders
from tf_unravel.adaptation.network import Network


def task(ways=3, shots=2, queries=2):
    return next(iter(data.episodes(make_split(), ways=ways, shots=shots, queries=queries, tasks_per_batch=2)))


def by_hand(backbone, support, labels, batches, optimizer):
    """Trains a copy of the backbone and a zero classifier with a Keras optimizer, BatchNorm on its batch.

    `batches` says for every step which images it sees.
    """
    copy = keras.models.clone_model(backbone)
    copy.set_weights(backbone.get_weights())
    classifier = keras.layers.Dense(3, kernel_initializer="zeros")
    model = keras.Sequential([copy, classifier])
    model.build((None, 16, 16, 3))
    for chosen in batches:
        with tf.GradientTape() as tape:
            logits = model(tf.gather(support, chosen), training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(tf.gather(labels, chosen), logits))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    return model


@pytest.mark.parametrize(("inner", "outer"), [
    (None, lambda: keras.optimizers.SGD(0.1)),
    (heads.Adam(0.003), lambda: keras.optimizers.Adam(0.003, beta_1=0.0, epsilon=1e-8)),
], ids=["sgd", "adam"])
def test_it_is_training_a_copy(inner, outer):
    backbone, episode = small_network(), task()
    before = backbone.get_weights()
    head = heads.FineTune(steps=4, learning_rate=0.1, optimizer=inner, batchnorm="transductive")
    logits = head(backbone, episode.support_images, episode.support_labels, episode.query_images, 3)
    for t in range(2):
        everything = [range(6)] * 4
        trained = by_hand(backbone, episode.support_images[t], episode.support_labels[t], everything, outer())
        expected = trained(episode.query_images[t], training=True)
        np.testing.assert_allclose(logits[t], expected, rtol=2e-2, atol=2e-3)
    for a, b in zip(before, backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_broken_off_task_leaves_nothing_behind(monkeypatch):
    """Interrupted in the middle of the inner loop, after steps that would have changed the weights."""
    backbone, episode = small_network(), task()
    before, seen = backbone.get_weights(), []

    def sometimes(loss):
        seen.append(float(loss))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return loss

    original = network_module.cross_entropy

    def interrupted(logits, labels):
        return tf.py_function(sometimes, [original(logits, labels)], tf.float32)

    monkeypatch.setattr(network_module, "cross_entropy", interrupted)
    with pytest.raises((KeyboardInterrupt, tf.errors.OpError)):
        heads.FineTune(steps=5, learning_rate=0.1)(
            backbone, episode.support_images, episode.support_labels, episode.query_images, 3
        )
    assert len(seen) >= 3
    for a, b in zip(before, backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_queries_are_answered_with_nothing_dropped():
    """r2d2 has dropout: the answer is that of dropout at rate 0, the same again, and other steps draw other masks."""
    backbone = backbones.r2d2((16, 16, 3), filters=(4, 4, 4, 4), seed=0)
    before = backbone.get_weights()
    episode = task()
    arguments = (episode.support_images, episode.support_labels, episode.query_images, 3)
    network, _, support, query = network_and_images()
    network, rng = Network(backbone, 3), np.random.default_rng(0)
    weights = [w + 0.1 * tf.constant(rng.normal(size=w.shape), tf.float32) for w in network.weights]
    start = batchnorm.Adapted(network, weights, network.state)
    rates = {layer: layer.rate for layer in backbone.layers if hasattr(layer, "forwards")}
    for protocol in batchnorm.PROTOCOLS:
        logits = batchnorm.query_logits(start, support, query, protocol)
        assert rates and np.any(logits)  # a classifier of zeros would hide what is dropped before it
        for layer in rates:
            layer.rate = 0.0
        undropped = batchnorm.query_logits(start, support, query, protocol)
        for layer, rate in rates.items():
            layer.rate = rate
        np.testing.assert_array_equal(logits, undropped)
        head = heads.FineTune(steps=2, batchnorm=protocol)
        np.testing.assert_array_equal(head(backbone, *arguments), head(backbone, *arguments))
    weights = [tf.ones_like(w) for w in network.weights]
    a, state = network.logits(weights, query, network.state)
    b, _ = network.logits(weights, query, state)
    assert not np.array_equal(a, b)
    for old, new in zip(before, backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def network_and_images():
    rng = np.random.default_rng(0)
    network = Network(small_network(), 3)
    weights = [w + 0.1 * tf.constant(rng.normal(size=w.shape), tf.float32) for w in network.weights]
    return network, weights, tf.constant(pictures(rng, 6)), tf.constant(pictures(rng, 4))


def test_protocols_differ_in_what_a_query_is_normalised_with():
    network, weights, support, query = network_and_images()
    images, adapted = (support, query), batchnorm.Adapted(network, weights, network.state)
    logits = {
        protocol: batchnorm.query_logits(adapted, *images, protocol).numpy()
        for protocol in batchnorm.PROTOCOLS
    }
    np.testing.assert_array_equal(logits["transductive"], network.logits(weights, query)[0])
    for i in range(4):
        together = tf.concat([support, query[i : i + 1]], axis=0)
        expected = network.logits(weights, together)[0][-1]
        np.testing.assert_allclose(logits["one_by_one"][i], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits["running"], network.logits(weights, query, training=False)[0], rtol=1e-5)
    # Alone or among others: only the transductive answer changes.
    for protocol, values in logits.items():
        alone = batchnorm.query_logits(adapted, support, query[:1], protocol).numpy()
        assert np.allclose(alone[0], values[0], rtol=1e-4, atol=1e-5) == (protocol != "transductive")


def test_support_protocol_uses_the_statistics_of_the_support_set():
    """One block by hand: (x - mean) / sqrt(var + eps) with mean and unbiased variance over the support images."""
    inputs = keras.Input((4, 4, 2))
    from tf_unravel.backbones.batch_norm import FusedBatchNormalization

    outputs = keras.layers.Flatten()(FusedBatchNormalization(epsilon=1e-3, momentum=0.8)(inputs))
    backbone = keras.Model(inputs, outputs)
    rng = np.random.default_rng(0)
    support, query = (rng.normal(2.0, 3.0, size=(n, 4, 4, 2)).astype(np.float32) for n in (5, 3))
    network = Network(backbone, 2)
    kernel = rng.normal(size=(32, 2)).astype(np.float32)
    weights = [*network.weights[:-2], tf.constant(kernel), tf.zeros(2)]
    adapted = batchnorm.Adapted(network, weights, network.state)
    got = batchnorm.query_logits(adapted, tf.constant(support), tf.constant(query), "support")
    mean, variance = support.mean((0, 1, 2)), support.var((0, 1, 2), ddof=1)
    expected = ((query - mean) / np.sqrt(variance + 1e-3)).reshape(3, -1) @ kernel
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


def test_batches_are_random_orders_one_after_the_other():
    orders = batch_orders(steps=7, batch_size=4, examples=10, seed=tf.constant([0, 5])).numpy()
    assert orders.shape == (7, 4)
    flat = orders.reshape(-1)
    assert sorted(flat[:10]) == list(range(10)) and sorted(flat[10:20]) == list(range(10))
    assert not np.array_equal(flat[:10], flat[10:20])
    assert len(set(flat[20:])) == 8
    other = batch_orders(7, 4, 10, tf.constant([0, 6])).numpy()
    assert not np.array_equal(orders, other)


def test_batches_of_a_task_are_drawn_by_its_number_and_the_seed():
    backbone, episode = small_network(), task()
    head = heads.FineTune(steps=3, batch_size=4, learning_rate=0.1, batchnorm="transductive", seed=7)
    arguments = (episode.support_images, episode.support_labels, episode.query_images, 3)
    logits = head(backbone, *arguments, first_task=4)
    for t in range(2):
        orders = batch_orders(3, 4, 6, tf.constant([7, 4 + t]))
        trained = by_hand(backbone, arguments[0][t], arguments[1][t], orders, keras.optimizers.SGD(0.1))
        np.testing.assert_allclose(logits[t], trained(arguments[2][t], training=True), rtol=2e-2, atol=2e-3)


def test_every_step_drops_something_else():
    """At rate 0 the loss of the same images changes by the masks of dropout alone."""
    keras.utils.set_random_seed(0)
    classifier, episode = keras.layers.Dense(3), task()
    head = heads.FineTune(steps=3, learning_rate=0.0, classifier=classifier)
    network = head.network(backbones.r2d2((16, 16, 3), filters=(4, 4, 4, 4), seed=0), 3)
    seen = episode.support_images[0], episode.support_labels[0]
    _, losses = head.adapt(network, head.start(network), *seen, tf.constant([0, 0]))
    assert len(set(losses.numpy())) == 3


def test_the_order_of_a_task_does_not_depend_on_the_tasks_beside_it():
    backbone, episode = small_network(), task()
    head = heads.FineTune(steps=3, batch_size=2, learning_rate=0.1)
    arguments = (episode.support_images, episode.support_labels, episode.query_images)
    both = head(backbone, *arguments, 3, first_task=4)
    second = head(backbone, *(x[1:] for x in arguments), 3, first_task=5)
    np.testing.assert_allclose(both[1], second[0], rtol=1e-4, atol=1e-5)


def test_tasks_side_by_side_one_by_one_and_in_a_graph_are_the_same():
    backbone, episode = small_network(), data.Episode(*(np.concatenate([x, x, x[:1]]) for x in task()))
    arguments = (episode.support_images, episode.support_labels, episode.query_images, 3)
    one, many = (heads.FineTune(steps=3, batch_size=2, parallel_tasks=threads) for threads in (1, 3))
    expected = one(backbone, *arguments)
    assert expected.shape[0] == 5
    np.testing.assert_allclose(many(backbone, *arguments), expected, rtol=1e-5, atol=1e-6)
    in_graph = tf.function(lambda *images: many(backbone, *images, 3))(*map(tf.constant, arguments[:3]))
    np.testing.assert_allclose(in_graph, expected, rtol=1e-5, atol=1e-6)


def test_no_steps_from_zero_say_nothing():
    backbone, episode = small_network(), task()
    logits = heads.FineTune(steps=0)(backbone, episode.support_images, episode.support_labels, episode.query_images, 3)
    np.testing.assert_array_equal(logits, np.zeros((2, 6, 3)))


def test_evaluated_beside_other_heads_on_the_same_tasks():
    split, backbone = make_split(), small_network(filters=8)
    table = evaluate_heads(backbone, [heads.Prototypes(), heads.FineTune(steps=5, learning_rate=0.1)], split, ways=3,
                           shots=(1, 2), queries=3, num_tasks=20)
    alone = evaluate(backbone, heads.FineTune(steps=5, learning_rate=0.1), split, 3, 2, 3, 20)
    np.testing.assert_array_equal(alone.per_task, table["fine_tune"][2].per_task)
    assert table["fine_tune"][2].mean > 0.5
    assert "support" in table["fine_tune"][1].batchnorm and "running" in table["prototypes"][1].batchnorm


def test_tasks_keep_their_numbers_from_block_to_block():
    """20 tasks are evaluated as two blocks of 10; the order of a task's batches comes from its number."""
    seen = []

    class Watched(heads.FineTune):
        def __call__(self, backbone, support, support_labels, query, ways, first_task=0):
            seen.append((first_task, len(support)))
            return tf.zeros([*query.shape[:2], ways])

    evaluate(small_network(), Watched(), make_split(), ways=3, shots=2, queries=3, num_tasks=20)
    assert seen == [(0, 10), (10, 10)]


def test_features_alone_cannot_be_fine_tuned():
    split = make_split()
    with pytest.raises(ValueError, match="give the keras.Model"):
        evaluate(np.zeros((len(split.images), 4), np.float32), heads.FineTune(), split, num_tasks=2, shots=1, queries=1)


@pytest.mark.parametrize("bad", [
    {"steps": -1}, {"batch_size": 0}, {"batchnorm": "mine"}, {"learning_rate": -1.0}, {"parallel_tasks": 0},
    {"optimizer": "adam"},
])  # fmt: skip
def test_bad_arguments_are_refused(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))}.*Received: "):
        heads.FineTune(**bad)


@pytest.mark.parametrize("optimizer", [heads.SGD, heads.Adam])
@pytest.mark.parametrize("rate", [-0.1, float("nan"), float("inf"), "fast"])
def test_inner_rates_are_finite_and_not_negative(optimizer, rate):
    with pytest.raises(ValueError, match=f"{optimizer.__name__}.*learning_rate.*Received: .*{rate!r}"):
        optimizer(rate)
    assert optimizer(0).learning_rate == 0


def test_a_classifier_of_other_ways_is_refused():
    classifier = keras.layers.Dense(5)
    episode = task()
    with pytest.raises(ValueError, match="learned for 5 ways"):
        heads.FineTune(classifier=classifier)(
            small_network(), episode.support_images, episode.support_labels, episode.query_images, 3
        )
    with pytest.raises(ValueError, match="Received: 'some'"):
        heads.FineTune(adapted="some")(
            small_network(), episode.support_images, episode.support_labels, episode.query_images, 3
        )
