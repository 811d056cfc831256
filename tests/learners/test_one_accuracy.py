"""One accuracy a name: of Keras's evaluation, whatever its batches, of `tf_unravel.evaluate`; bad labels."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import make_split
from tests.test_stale import tiny
from tf_unravel import data, evaluate, heads, learners, regularizers
from tf_unravel.adaptation.labels import checked_range, checked_support, labels_checked
from tf_unravel.data.sampling.tasks import Episode, TaskSampler

SPLIT = make_split(size=8)


def episodes(tasks, ways=3, shots=2, queries=3, seed=0):
    """The tasks that `evaluate` draws, as one batch."""
    sampler = TaskSampler(SPLIT, ways, shots, queries, seed)
    support, query = sampler.indices(0, tasks)
    labels = [np.tile(each, (tasks, 1)) for each in sampler.labels]
    return Episode(SPLIT.images[support], labels[0], SPLIT.images[query], labels[1])


def in_batches(examples, size):
    return tf.data.Dataset.from_tensor_slices(examples).batch(size)


def shaken(backbone):
    """Weights and statistics away from where they start, so that steps and protocols differ."""
    rng = np.random.default_rng(0)
    for variable in backbone.variables:
        if variable.dtype == "float32":
            variable.assign(variable + 0.3 * np.abs(rng.normal(size=variable.shape)))
    return backbone


def classical():
    return learners.Classical(shaken(tiny()), 6, regularizers.FeatureClustering(0.1))


def maml(**options):
    keras.utils.set_random_seed(2)
    return learners.MAML(shaken(tiny()), 3, **({"inner_steps": 2, "inner_learning_rate": 0.3} | options))


def inner_batches(tasks):
    return next(iter(data.inner_batches(SPLIT, 3, 5, 2, 4, tasks)))


LEARNERS = {
    "classical": (classical, lambda: (SPLIT.images[25:60], SPLIT.class_ids[25:60]), ["accuracy", "cross_entropy"]),
    "episodic": (lambda: learners.Episodic(tiny(), heads.Prototypes()), lambda: episodes(7), ["accuracy", "loss"]),
    "maml": (maml, lambda: episodes(7), ["accuracy", "loss", "support_loss"]),
    "reptile": (lambda: learners.Reptile(tiny(), 3, 2, 4), lambda: inner_batches(7), ["loss", "last_loss"]),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_a_short_last_batch_counts_for_what_it_holds(name):
    make, examples, tracked = LEARNERS[name]
    learner, examples = make(), examples()
    learner.compile(optimizer="sgd")
    found = {size: learner.evaluate(in_batches(examples, size), verbose=0, return_dict=True) for size in (2, 5, 100)}
    for metric in tracked:
        values = [each[metric] for each in found.values()]
        np.testing.assert_allclose(values, values[-1], rtol=1e-5, err_msg=metric)


@pytest.mark.parametrize("eagerly", [False, True])
def test_validation_while_fitting_weighs_too(eagerly):
    learner = classical()
    learner.compile(optimizer=keras.optimizers.SGD(0.0), run_eagerly=eagerly)
    images, ids = SPLIT.images, SPLIT.class_ids
    found = [learner.fit(images[:20], ids[:20], batch_size=20, verbose=0, validation_data=(images[:59], ids[:59]),
                         validation_batch_size=size).history["val_accuracy"][0] for size in (7, 59)]
    np.testing.assert_allclose(found[0], np.mean(learner(images[:59]).numpy().argmax(-1) == ids[:59]), rtol=1e-6)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)


def test_training_reports_the_mean_over_steps_as_ever():
    learner = classical()
    learner.compile(optimizer=keras.optimizers.SGD(0.0))
    batches = [(SPLIT.images[i : i + 12], SPLIT.class_ids[i : i + 12]) for i in (0, 12, 24)]
    values = [float(learner.objective(batch, training=True)["loss"]) for batch in batches]
    total = np.float32(0)
    for batch, value in zip(batches, values, strict=True):
        reported = learner.train_step(batch)["loss"]
        total += np.float32(value)
    assert float(reported) == total / np.float32(3)


@pytest.mark.parametrize("options", [
    {}, {"evaluation_steps": 5}, {"batchnorm": "running"}, {"batchnorm": "support", "evaluation_steps": 0},
    {"batchnorm": "one_by_one", "adapted": "last_layer", "sum_over_ways": True},
], ids=str)  # fmt: skip
def test_keras_evaluation_of_maml_is_that_of_its_head(options):
    learner, tasks = maml(**options), {"ways": 3, "shots": 2, "queries": 3}
    learner.compile(optimizer="sgd")
    ours = evaluate(learner.backbone, learner.own_head(), SPLIT, num_tasks=6, **tasks)
    before = [variable.numpy() for variable in learner.backbone.variables]
    kerass = learner.evaluate(in_batches(episodes(6), 4), verbose=0, return_dict=True)
    np.testing.assert_allclose(kerass["accuracy"], ours.mean, rtol=1e-6)
    for old, variable in zip(before, learner.backbone.variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())


def test_the_losses_of_mamls_evaluation():
    """Of the queries by the head's logits, and of the support set before the first step."""
    learner, episode = maml(evaluation_steps=3), episodes(2)
    found = learner.test_step(episode)
    head, network = learner.own_head(), learner.network
    logits = head(learner.backbone, *episode[:3], 3)
    np.testing.assert_allclose(found["loss"], np.mean(network.loss(tf.reshape(logits, (-1, 3)),
                                                                   tf.reshape(episode.query_labels, [-1]))), rtol=1e-5)
    before = [network.loss(network.logits(network.weights, images)[0], labels)
              for images, labels in zip(episode.support_images, episode.support_labels, strict=True)]
    np.testing.assert_allclose(found["support_loss"], np.mean(before), rtol=1e-5)


def test_evaluation_follows_the_training():
    learner, (*tasks, labels) = maml(inner_steps=1, first_order=True), episodes(4)
    learner.compile(optimizer=keras.optimizers.SGD(0.5))
    for _ in range(2):
        learner.fit(in_batches(episodes(4), 2), verbose=0)
        fresh = heads.FineTune(1, 0.3, batchnorm="transductive", classifier=learner.classifier)
        logits = tf.reshape(fresh(learner.backbone, *tasks, 3), (-1, 3))
        found = learner.evaluate(in_batches(episodes(4), 3), verbose=0, return_dict=True)["loss"]
        np.testing.assert_allclose(found, learner.network.loss(logits, labels.reshape(-1)), rtol=1e-4)


BAD_SUPPORT = {
    "skips a class": ([[0, 1, 2, 0, 1, 2], [0, 0, 2, 2, 0, 2]], "Every class of a task needs at least one"),
    "too large": ([[0, 1, 2, 0, 1, 2], [0, 1, 2, 0, 1, 3]], "support_labels must lie in 0..ways-1"),
    "negative": ([[0, 1, 2, 0, 1, 2], [0, 1, 2, 0, 1, -1]], "support_labels must lie in 0..ways-1"),
}
FEATURES = np.random.default_rng(0).normal(size=(2, 6, 8)).astype(np.float32)


@pytest.mark.parametrize("known_ways", [True, False])
@pytest.mark.parametrize("name", sorted(heads.by_name))
def test_a_head_in_a_graph_refuses_what_it_refuses_outside(name, known_ways):
    images, backbone = np.tile(SPLIT.images[None, :6], (2, 1, 1, 1, 1)), tiny()
    ways = tf.constant(3) if known_ways else tf.Variable(3)

    def call(labels):
        if name == "fine_tune":  # its ways are a number
            return heads.FineTune(steps=1)(backbone, images, labels, images, 3)
        return heads.by_name[name]()(FEATURES, labels, FEATURES, tf.convert_to_tensor(ways))

    graph = tf.function(call, input_signature=[tf.TensorSpec([None, 6], tf.int32)])
    for labels, message in BAD_SUPPORT.values():
        with pytest.raises(ValueError, match=message):
            call(np.array(labels))
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            graph(tf.constant(labels))
    assert np.isfinite(graph(tf.constant([[0, 1, 2, 0, 1, 2]] * 2))).all()


def with_labels(episode, support=None, query=None):
    return episode._replace(support_labels=episode.support_labels if support is None else np.array(support),
                            query_labels=episode.query_labels if query is None else np.array(query))


BAD_EPISODES = {
    **{kind: ({"support": labels}, message) for kind, (labels, message) in BAD_SUPPORT.items() if kind != "too large"},
    "query too large": ({"query": [[0, 1, 2], [0, 1, 3]]}, "query_labels must lie in 0..ways-1"),
    "query negative": ({"query": [[0, 1, 2], [0, 1, -1]]}, "query_labels must lie in 0..ways-1"),
}


@pytest.mark.parametrize("make", [lambda: learners.Episodic(tiny(), heads.Ridge()), lambda: maml(inner_steps=1)],
                         ids=["episodic", "maml"])
def test_a_learner_takes_no_step_on_labels_that_are_none(make):
    learner, good = make(), episodes(2, queries=1)
    learner.compile(optimizer=keras.optimizers.SGD(0.1))
    before = [variable.numpy() for variable in learner.trainable_variables]
    for labels, message in BAD_EPISODES.values():
        episode = with_labels(good, **labels)
        with pytest.raises(ValueError, match=message):
            learner.train_step(episode)
        for fitted in (learner.fit, learner.evaluate):
            with pytest.raises(tf.errors.InvalidArgumentError, match=message):
                fitted(in_batches(episode, 2), verbose=0)
    for old, variable in zip(before, learner.trainable_variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())


@pytest.mark.parametrize(("ways", "message"), [(2, "Every class of a task"), (4, "support_labels must lie")])
def test_maml_takes_no_tasks_of_other_ways(ways, message):
    learner = maml()
    for step in (learner.train_step, learner.test_step):
        with pytest.raises(ValueError, match=message):
            step(episodes(2, ways=ways))


@pytest.mark.parametrize("label", [3, -1])
def test_reptile_takes_no_label_out_of_range(label):
    learner = learners.Reptile(tiny(), 3, 2, 4)
    learner.compile(optimizer="sgd")
    images, labels = (np.asarray(each) for each in inner_batches(2))
    labels = labels.copy()
    labels[1, 1, 2] = label
    with pytest.raises(ValueError, match=f"labels must lie in 0..ways-1. Received: .*{label}"):
        learner.train_step((images, tf.constant(labels)))
    with pytest.raises(tf.errors.InvalidArgumentError, match="labels must lie in 0..ways-1"):
        learner.fit(in_batches((images, labels), 2), verbose=0)


@pytest.mark.parametrize("label", [6, -1])
def test_classical_takes_no_class_out_of_range(label):
    """By TensorFlow's own cross-entropy."""
    learner, ids = classical(), SPLIT.class_ids[:20].copy()
    learner.compile(optimizer="sgd")
    before = [variable.numpy() for variable in learner.trainable_variables]
    ids[7] = label
    for step in (lambda: learner.train_step((SPLIT.images[:20], ids)),
                 lambda: learner.fit(SPLIT.images[:20], ids, verbose=0)):
        with pytest.raises(tf.errors.InvalidArgumentError, match=f"label value of {label} which is outside"):
            step()
    for old, variable in zip(before, learner.trainable_variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())


def test_checks_leave_labels_alone_and_may_be_left_out():
    labels = np.array([[0, 1, 2, 1]], np.uint8)
    specs = [tf.TensorSpec([None, None], tf.uint8)]
    for check in (lambda each: checked_support(each, 3)), (lambda each: checked_range("labels", each, 3)):
        graph = tf.function(check, input_signature=specs, autograph=False)
        for each in (check(labels), graph(labels)):
            assert each.dtype == tf.uint8
            np.testing.assert_array_equal(each, labels)
        assert "Assert" in str(graph.get_concrete_function().graph.as_graph_def())
        with labels_checked():
            unchecked = tf.function(check, input_signature=specs, autograph=False).get_concrete_function()
        assert "Assert" not in str(unchecked.graph.as_graph_def())
