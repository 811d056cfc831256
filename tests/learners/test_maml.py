"""MAML: its meta-gradient against closed forms and finite differences, its variants, its conventions."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import make_split
from tests.learners.problems import half_squared_error, no_backbone, pictures, small_network
from tf_unravel import backbones, data, evaluate, heads, learners
from tf_unravel.adaptation.inner_loop import gradients_of
from tf_unravel.data.sampling.tasks import Episode

RATE, STEPS = 0.3, 3


def quadratic(**options):
    """A learner of one linear layer under a quadratic loss, and one task of it."""
    keras.utils.set_random_seed(1)
    learner = learners.MAML(no_backbone(3), ways=2, inner_steps=STEPS, inner_learning_rate=RATE, **options)
    learner.network.loss = half_squared_error
    rng = np.random.default_rng(0)
    support, query = (rng.normal(size=(2, 3, 1, 1)).astype(np.float32) for _ in range(2))
    targets, wanted = (rng.normal(size=(2, 2)).astype(np.float32) for _ in range(2))
    return learner, Episode(support, targets, query, wanted)


def inner_step(learner, weights, rates, images, labels, state):
    """theta - a * grad L(theta), with the state that the call leaves."""
    step = gradients_of(learner.network, weights, images, labels, learner.adapts, state)
    return [w - learner.factor * a * g for w, a, g in zip(weights, rates, step.gradients, strict=True)], step.state


def with_ones(images):
    """Inputs of the linear layer with the bias's column, float64 [B, 4]."""
    rows = images.reshape(len(images), -1).astype(np.float64)
    return np.concatenate([rows, np.ones((len(rows), 1))], axis=1)


def stacked(gradients):
    kernel, bias = (np.asarray(g, np.float64) for g in gradients)
    return np.concatenate([kernel, bias[None]])


def closed_form(learner, episode, second_order: bool):
    """(meta-gradient [4, 2], query loss): theta' = theta - a H (theta - theta*), d theta_k / d theta = (I - a H)^k."""
    theta = stacked([v.numpy() for v in learner.network.variables])
    x, q = with_ones(episode.support_images), with_ones(episode.query_images)
    hessian = x.T @ x / len(x)
    fast = theta.copy()
    for _ in range(STEPS):
        fast -= RATE * (hessian @ fast - x.T @ episode.support_labels / len(x))
    error = q @ fast - episode.query_labels
    gradient = q.T @ error / len(q)
    if second_order:
        gradient = np.linalg.matrix_power(np.eye(4) - RATE * hessian, STEPS) @ gradient
    return gradient, np.mean(np.sum(error**2, axis=1)) / 2


@pytest.mark.parametrize("rematerialize", [False, True])
@pytest.mark.parametrize("first_order", [False, True])
def test_meta_gradient_on_a_quadratic_is_the_closed_form(first_order, rematerialize):
    learner, episode = quadratic(first_order=first_order, rematerialize=rematerialize)
    gradients, _, seen = learner.task_gradients(learner.network.weights, learner.rates.value, episode)
    expected, loss = closed_form(learner, episode, second_order=not first_order)
    np.testing.assert_allclose(stacked(gradients), expected, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(seen["values"]["loss"], loss, rtol=1e-5)


@pytest.mark.parametrize("rematerialize", [False, True])
def test_every_step_and_layer_has_its_own_rate(rematerialize):
    """The same closed form, the rates a_j a diagonal matrix: theta_{j+1} = theta_j - a_j (H theta_j - b).

    Backwards, u_j = (I - a_j H)^T u_{j+1}, and a rate's gradient is -u_{j+1} * (H theta_j - b) over its layer.
    """
    learner, episode = quadratic(learn_rates=True, rematerialize=rematerialize)
    rates = np.array([[0.3, 0.1], [0.2, 0.5], [0.05, 0.25]])  # [steps, kernel and bias]
    theta = stacked([v.numpy() for v in learner.network.variables])
    x, q = with_ones(episode.support_images), with_ones(episode.query_images)
    hessian, b = x.T @ x / len(x), x.T @ episode.support_labels / len(x)
    by_row = rates[:, [0, 0, 0, 1]]  # three rows of the kernel and the bias
    inner, fast = [], theta
    for row in by_row:
        inner.append(hessian @ fast - b)
        fast = fast - row[:, None] * inner[-1]
    upstream, by_rates = q.T @ (q @ fast - episode.query_labels) / len(q), np.zeros((STEPS, 2))
    for j in reversed(range(STEPS)):
        by_entry = -(upstream * inner[j]).sum(axis=1)
        by_rates[j] = by_entry[:3].sum(), by_entry[3]
        upstream = (np.eye(4) - by_row[j][:, None] * hessian).T @ upstream
    learner.rates.assign(rates)
    found = learner.task_gradients(learner.network.weights, learner.rates.value, episode)
    np.testing.assert_allclose(stacked(found[0]), upstream, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(found[1], by_rates, rtol=2e-5, atol=1e-6)


def normalized(norm=None):
    """A conv net with a normalisation layer between its convolutions, and without a kink."""
    return keras.Sequential([
        keras.Input((16, 16, 3)), keras.layers.Rescaling(1 / 127.5, -1), keras.layers.Conv2D(4, 5, strides=4),
        norm or keras.layers.Identity(), keras.layers.Activation("gelu"), keras.layers.Conv2D(4, 2),
        keras.layers.GlobalAveragePooling2D(),
    ])  # fmt: skip


NORMALIZED = {
    "conv4": small_network,
    "none": normalized,
    "stock": lambda: normalized(keras.layers.BatchNormalization()),
    "stock_rows": lambda: normalized(keras.layers.BatchNormalization(axis=1)),
    "nested": lambda: normalized(keras.Sequential([keras.layers.BatchNormalization()])),
    "ours": lambda: normalized(backbones.FusedBatchNormalization()),
    "ours_rows": lambda: normalized(backbones.FusedBatchNormalization(axis=1)),
    "group": lambda: normalized(keras.layers.GroupNormalization(2)),
    "layer": lambda: normalized(keras.layers.LayerNormalization()),
}


def float64_task(network=small_network, **options):
    """A small conv net in float64 and one task: what finite differences need."""
    keras.config.set_dtype_policy("float64")
    try:
        keras.utils.set_random_seed(3)
        learner = learners.MAML(network(), ways=2, inner_steps=2, inner_learning_rate=0.1, **options)
        classifier = keras.layers.Dense(2, dtype="float64")
        learner.network = type(learner.network)(learner.backbone, 2, classifier)
        learner.adapts = learner.network.adapted("all")
    finally:
        keras.config.set_dtype_policy("float32")
    rng = np.random.default_rng(0)
    labels = np.array([0, 1, 0, 1])
    support, query = (tf.constant(pictures(rng, 4), tf.float64) for _ in range(2))
    return learner, Episode(support, labels, query, labels)


@pytest.mark.parametrize(("network", "rematerialize"), [*((name, False) for name in NORMALIZED),
                                                        ("conv4", True), ("stock", True)])
def test_meta_gradient_of_a_conv_net_is_that_of_finite_differences(network, rematerialize):
    learner, episode = float64_task(NORMALIZED[network], rematerialize=rematerialize)
    weights = [tf.cast(w, tf.float64) for w in learner.network.weights]
    rates = tf.constant(np.full((2, len(weights)), 0.1))
    by_weights, by_rates, _ = learner.task_gradients(weights, rates, episode)
    rng = np.random.default_rng(1)

    def loss(weights, rates):
        fast, state = weights, learner.network.state
        for j in range(2):
            fast, _ = inner_step(learner, fast, rates[j], episode.support_images, episode.support_labels, state)
        return float(learner.network.loss(learner.network.logits(fast, episode.query_images)[0], episode.query_labels))

    for _ in range(3):
        directions = [rng.normal(size=w.shape) for w in weights]
        rate_direction = rng.normal(size=rates.shape)
        h = 1e-6
        there = [loss([w + s * h * d for w, d in zip(weights, directions, strict=True)], rates + s * h * rate_direction)
                 for s in (1, -1)]
        slope = sum(float(tf.reduce_sum(g * d)) for g, d in zip(by_weights, directions, strict=True))
        slope += float(tf.reduce_sum(by_rates * rate_direction))
        np.testing.assert_allclose(slope, (there[0] - there[1]) / (2 * h), rtol=2e-6)


def freezable():
    return normalized(keras.Sequential([keras.layers.Normalization(mean=[0.1] * 4, variance=[0.7] * 4),
                                        keras.layers.BatchNormalization()]))


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("learner", [
    lambda backbone: learners.MAML(backbone, 3, inner_steps=1),
    lambda backbone: learners.MAML(backbone, 3, inner_steps=1, adapted="last_layer", learn_rates=True),
    lambda backbone: learners.Reptile(backbone, 3, inner_steps=2, inner_batch=2),
], ids=["maml", "anil", "reptile"])  # fmt: skip
def test_freezing_after_the_learner_was_built_is_refused(learner, first):
    """What is kept for every weight belongs to the weights that there were; in both directions, in its head too."""
    backbone = freezable()
    backbone.layers[1].trainable = first
    made = learner(backbone)
    made.compile(optimizer="sgd")
    split = make_split()
    batches = (data.inner_batches(split, ways=3, shots=2, steps=2, batch=2, tasks=2).take(1)
               if isinstance(made, learners.Reptile) else [batch()])
    backbone.layers[1].trainable = not first
    made.compile(optimizer="sgd")
    line = r"freeze or unfreeze layers first, then build the learner. Received: \d trainable weight tensors, \d when"
    with pytest.raises(ValueError, match=line):
        made.train_step(next(iter(batches)))
    support, labels, query, _ = batch()
    with pytest.raises(ValueError, match=line):
        made.own_head()(backbone, support, labels, query, 3)
    backbone.layers[1].trainable = first
    made.train_step(next(iter(batches)))


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("learner", [
    lambda backbone: (learners.Classical(backbone, 3), (np.repeat(make_split().images[:3], 2, 0), np.arange(6) % 3)),
    lambda backbone: (learners.Episodic(backbone, heads.Ridge()), batch()),
], ids=["classical", "episodic"])  # fmt: skip
def test_freezing_after_the_learner_was_built_takes_effect_in_learners_without_an_inner_loop(learner, first):
    backbone = freezable()
    backbone.layers[1].trainable = first
    made, episodes = learner(backbone)
    backbone.layers[1].trainable = not first
    made.compile(optimizer=keras.optimizers.SGD(0.1))
    before = backbone.layers[1].kernel.numpy()
    made.train_step(tf.nest.map_structure(tf.constant, episodes))
    assert np.array_equal(before, backbone.layers[1].kernel) == first


@pytest.mark.parametrize("make", [
    lambda backbone: learners.MAML(backbone, 3, inner_steps=2),
    lambda backbone: learners.Reptile(backbone, 3, inner_steps=2, inner_batch=2),
], ids=["maml", "reptile"])  # fmt: skip
def test_training_leaves_what_is_frozen_to_the_last_bit(make):
    """Three tasks: the mean of three equal numbers may differ from them in the last digit."""
    keras.utils.set_random_seed(0)
    backbone = freezable()
    frozen = [backbone.layers[1], backbone.layers[2]]
    for layer in frozen:
        layer.trainable = False
    learner = make(backbone)
    learner.compile(optimizer=keras.optimizers.SGD(0.1))
    before = [v.numpy() for layer in frozen for v in layer.variables]
    moving = backbone.layers[-2].kernel.numpy()
    batches = (data.inner_batches(make_split(), ways=3, shots=2, steps=2, batch=2, tasks=3).take(3)
               if isinstance(learner, learners.Reptile) else [batch(tasks=3, seed=seed) for seed in range(3)])
    for each in batches:
        learner.train_step(each)
    for old, new in zip(before, [v for layer in frozen for v in layer.variables], strict=True):
        np.testing.assert_array_equal(old, new)
    assert not np.array_equal(moving, backbone.layers[-2].kernel)


def batch(tasks=2, seed=0):
    return next(iter(data.episodes(make_split(), ways=3, shots=2, queries=2, tasks_per_batch=tasks, seed=seed)))


def learner_of(seed=0, **options):
    keras.utils.set_random_seed(seed)
    learner = learners.MAML(small_network(), 3, **({"inner_steps": 2, "inner_learning_rate": 0.1} | options))
    learner.compile(optimizer=keras.optimizers.SGD(0.1))
    return learner


def stepped(learner, episodes):
    learner.train_step(episodes)
    return [v.numpy() for v in learner.trainable_variables]


def test_a_step_is_the_mean_over_tasks():
    learner, episodes = learner_of(), batch(tasks=3)
    before = [v.numpy() for v in learner.network.variables]
    alone = [learner.task_gradients(learner.network.weights, learner.rates.value, Episode(*(x[t] for x in episodes)))[0]
             for t in range(3)]
    learner.train_step(episodes)
    for i, (old, variable) in enumerate(zip(before, learner.network.variables, strict=True)):
        mean = np.mean([gradients[i].numpy() for gradients in alone], axis=0)
        np.testing.assert_allclose(variable.numpy(), old - 0.1 * mean, atol=1e-6)


@pytest.mark.parametrize("graph", [False, True])
def test_rematerializing_changes_nothing(graph):
    """As a graph too, where equal computations are merged unless something keeps them apart."""
    ends = []
    for learner in (learner_of(), learner_of(rematerialize=True)):
        step = tf.function(learner.train_step) if graph else learner.train_step
        step(batch())
        ends.append([v.numpy() for v in learner.trainable_variables])
    for a, b in zip(*ends, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("rematerialize", "looks"), [(False, 3), (True, 5)])
def test_rematerializing_computes_the_inner_steps_again(rematerialize, looks, monkeypatch):
    """Two inner steps and the queries; the derivatives of the two steps look once more each."""
    learner, seen = learner_of(rematerialize=rematerialize), []
    logits = learner.network.logits
    monkeypatch.setattr(learner.network, "logits", lambda *arguments: seen.append(1) or logits(*arguments))
    learner.task_gradients(learner.network.weights, learner.rates.value, Episode(*(x[0] for x in batch())))
    assert len(seen) == looks


def test_every_look_of_a_task_drops_something_else():
    """Two inner steps and the queries are three forwards of dropout, whatever the number of tasks."""
    keras.utils.set_random_seed(0)
    learner = learners.MAML(backbones.r2d2((16, 16, 3), filters=(4, 4, 4, 4), seed=0), 3, inner_steps=2)
    learner.compile(optimizer=keras.optimizers.SGD(0.1))
    learner.train_step(batch())
    counted = [int(layer.forwards) for layer in learner.backbone.layers if hasattr(layer, "forwards")]
    assert counted and set(counted) == {3}


def test_without_inner_steps_it_trains_on_the_queries_alone():
    learner, episodes = learner_of(inner_steps=0), batch()
    keras.utils.set_random_seed(0)
    with tf.GradientTape() as tape:
        logits = [learner.network.logits(learner.network.weights, q)[0] for q in episodes.query_images]
        losses = [learner.network.loss(z, y) for z, y in zip(logits, episodes.query_labels, strict=True)]
        loss = tf.reduce_mean(losses)
    expected = tape.gradient(loss, [v.value for v in learner.network.variables])
    before = [v.numpy() for v in learner.network.variables]
    reported = learner.train_step(episodes)
    np.testing.assert_allclose(reported["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(reported["accuracy"], np.mean(np.argmax(logits, -1) == episodes.query_labels), rtol=1e-6)
    for old, g, variable in zip(before, expected, learner.network.variables, strict=True):
        np.testing.assert_allclose(variable.numpy(), old - 0.1 * g, atol=1e-6)
    support, labels, query, _ = episodes
    assert learner.own_head()(learner.backbone, support, labels, query, 3).shape == (2, 6, 3)


@pytest.mark.parametrize(("first_order", "policy"), [
    (False, "mixed_bfloat16"), (True, "mixed_float16"),
    pytest.param(True, "mixed_bfloat16", marks=pytest.mark.long),
    pytest.param(False, "mixed_float16", marks=pytest.mark.long),
])
def test_mixed_precision_trains(policy, first_order):
    keras.config.set_dtype_policy(policy)
    try:
        learner = learner_of(first_order=first_order)
        learner.compile(optimizer=keras.optimizers.Adam(0.01))
        step = tf.function(learner.train_step)
        losses = []
        for i in range(25):
            losses.append(float(step(batch(tasks=4, seed=i))["loss"]))
            for metric in learner.metrics:
                metric.reset_state()
    finally:
        keras.config.set_dtype_policy("float32")
    assert np.isfinite(losses).all() and np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.05


def test_first_order_and_second_order_differ():
    pairs = zip(stepped(learner_of(), batch()), stepped(learner_of(first_order=True), batch()), strict=True)
    assert max(np.abs(a - b).max() for a, b in pairs) > 1e-4


def test_summing_over_ways_is_a_larger_inner_rate():
    summed = learner_of(sum_over_ways=True)
    plain = learner_of(inner_learning_rate=0.3)
    episode = Episode(*(x[0] for x in batch()))
    a = summed.task_gradients(summed.network.weights, summed.rates.value, episode)
    b = plain.task_gradients(plain.network.weights, plain.rates.value, episode)
    np.testing.assert_allclose(a[2]["values"]["loss"], b[2]["values"]["loss"], rtol=1e-5)
    for one, other in zip(a[0], b[0], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("adapted", "names"), [
    ("last_layer", {"kernel", "bias"}),
    ("all_but_batch_norm", {"kernel", "bias"}),
    ("all", {"kernel", "bias", "gamma", "beta"}),
])
def test_the_inner_loop_changes_what_it_adapts_alone(adapted, names):
    learner = learner_of(adapted=adapted)
    episode = Episode(*(x[0] for x in batch()))
    _, by_rates, _ = learner.task_gradients(learner.network.weights, learner.rates.value, episode)
    # A rate of what is not adapted does nothing.
    changed = [variable for variable, g in zip(learner.network.variables, by_rates[0], strict=True) if float(g)]
    assert changed and {v.name for v in changed} <= names
    if adapted == "last_layer":
        assert all("classifier" in v.path for v in changed)
    else:
        assert any("conv" in v.path for v in changed)


def test_learned_rates_get_a_gradient_and_a_place_in_evaluation():
    learner = learner_of(learn_rates=True)
    learner.train_step(batch())
    rates = learner.rates.numpy()
    assert np.ptp(rates) > 0
    fixed = learner_of()
    fixed.train_step(batch())
    assert np.ptp(fixed.rates.numpy()) == 0
    head = learner.own_head()
    np.testing.assert_allclose(np.asarray(head.optimizer.rates), rates)
    learner.train_step(batch(seed=1))
    assert learner.own_head() is head
    np.testing.assert_allclose(np.asarray(head.optimizer.rates), learner.rates.numpy())


@pytest.mark.parametrize("adapted", ["all", "last_layer"])
def test_its_head_adapts_as_the_training_does(adapted):
    """From the learned classifier, by the learned rates and those of the last step after it, three steps for two."""
    learner = learner_of(adapted=adapted, sum_over_ways=True, evaluation_steps=3)
    learner.rates.assign(np.random.default_rng(0).uniform(0.01, 0.1, size=learner.rates.shape))
    support, labels, query, _ = batch()
    logits = learner.own_head()(learner.backbone, support, labels, query, 3)
    for t in range(2):
        fast, state = learner.network.weights, learner.network.state
        for j in (0, 1, 1):
            fast, _ = inner_step(learner, fast, learner.rates.value[j], support[t], labels[t], state)
        np.testing.assert_allclose(logits[t], learner.network.logits(fast, query[t])[0], rtol=1e-3, atol=1e-4)


def test_adam_clips_each_number_and_changes_its_rate():
    """Adam in NumPy from gradients (100, 1) clipped to (10, 1), then (0, 1) after the rate has changed."""
    optimizer = learners.adam(steps_per_epoch=1, rates=(0.1, 0.01), epochs=(1,), clip_value=10.0)
    variable, expected, first, second = keras.Variable([0.0, 0.0]), np.zeros(2), np.zeros(2), np.zeros(2)
    steps = [([100.0, 1.0], [10.0, 1.0], 0.1), ([0.0, 1.0], [0.0, 1.0], 0.01)]
    for t, (gradient, clipped, rate) in enumerate(steps, start=1):
        optimizer.apply([tf.constant(gradient)], [variable])
        first = 0.9 * first + 0.1 * np.array(clipped)
        second = 0.999 * second + 0.001 * np.square(clipped)
        expected -= rate * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
    np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-4)
    moments = [v.numpy() for v in optimizer.variables if "velocity" in v.path]
    np.testing.assert_allclose(moments, [second], rtol=1e-5)


def test_the_protocol_is_said_beside_every_accuracy():
    split = make_split()
    head = learner_of(sum_over_ways=True, adapted="all_but_batch_norm").own_head()
    said = str(evaluate(small_network(), head, split, ways=3, shots=2, queries=3, num_tasks=4))
    assert "transductive" in said and "SGD at rate 0.1 on the loss times 3 on all support images, mean loss" in said
    assert "MAML's own code" in said


def test_running_statistics_are_those_of_the_unadapted_network():
    learner, episodes = learner_of(), batch(tasks=2)
    weights, state = learner.network.weights, learner.network.state
    expected = [learner.network.logits(weights, episodes.support_images[t], state)[1] for t in range(2)]
    learner.train_step(episodes)
    for value, *tasks in zip(learner.network.state, *expected, strict=True):
        np.testing.assert_allclose(value, np.mean(tasks, axis=0), rtol=1e-5, atol=1e-5)


def test_fits_saves_loads_and_learns(tmp_path):
    split = make_split()
    keras.utils.set_random_seed(0)
    learner = learners.MAML(backbones.conv4((16, 16, 3), filters=4, seed=0), 3, inner_steps=2, first_order=True)
    learner.compile(optimizer=keras.optimizers.Adam(0.01))
    before = evaluate(learner.backbone, learner.own_head(), split, ways=3, shots=2, queries=3, num_tasks=30)
    learner.fit(data.episodes(split, ways=3, shots=2, queries=3, tasks_per_batch=4), steps_per_epoch=40, verbose=0)
    after = evaluate(learner.backbone, learner.own_head(), split, ways=3, shots=2, queries=3, num_tasks=30)
    assert after.mean > before.mean + 0.1 and "transductive" in after.batchnorm
    learner.save(tmp_path / "maml.keras")
    loaded = keras.models.load_model(tmp_path / "maml.keras")
    again = evaluate(loaded.backbone, loaded.own_head(), split, ways=3, shots=2, queries=3, num_tasks=30)
    np.testing.assert_array_equal(again.per_task, after.per_task)


def test_its_head_names_the_rates_of_what_is_adapted_alone():
    """Rates of weights that the inner loop leaves alone stay where they began, and say nothing."""
    learner = learner_of(adapted="last_layer", learn_rates=True)
    adapted = np.array(learner.adapts)
    learner.rates.assign(np.where(adapted, [[0.2] * len(adapted), [0.3] * len(adapted)], 0.1))
    assert str(learner.own_head().optimizer) == "SGD at learned rates 0.2 to 0.3"


@pytest.mark.parametrize("bad", [
    {"ways": 1}, {"inner_steps": -1}, {"adapted": "some"}, {"inner_learning_rate": -0.1},
    {"inner_learning_rate": float("nan")}, {"inner_learning_rate": "fast"}, {"weight_decay": -1e-4},
    {"parallel_tasks": 0}, {"evaluation_steps": -1}, {"batchnorm": "mine"},
])  # fmt: skip
def test_bad_arguments_are_refused_by_the_name_the_user_gave_them(bad):
    (name, value), = bad.items()
    with pytest.raises(ValueError, match=f"{name}.*Received: .*{re.escape(repr(value))}") as caught:
        learners.MAML(small_network(), **{"ways": 3, **bad})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("batches", [
    data.inner_batches(make_split(), 3, 4, 3, 4, 2), data.class_pairs(make_split(), 8), data.episodes(make_split(), 3),
], ids=["inner_batches", "class_pairs", "single_episodes"])  # fmt: skip
def test_batches_that_are_no_episodes_are_refused(batches):
    with pytest.raises(ValueError, match=r"MAML.*run.batches = @Episodes\(\).*Received: "):
        learner_of().check_batch(batches.element_spec)
    learner_of().check_batch(data.episodes(make_split(), 3, tasks_per_batch=2).element_spec)
