"""Reptile and weight clustering: Algorithm 2 written out in NumPy, its degenerate cases, hand-derived contraction."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import make_split
from tests.learners.problems import half_squared_error, no_backbone, small_network
from tf_unravel import backbones, data, evaluate, heads, learners, regularizers
from tf_unravel.adaptation.inner_loop import batch_orders, gradients_of
from tf_unravel.learners import reptile
from tf_unravel.learners.reptile import clustering_gradient


def quadratic_tasks():
    """Two tasks of a linear layer [2, 2] without noise: images [T, k, B, 2, 1, 1], targets [T, k, B, 2]."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 3, 4, 2, 1, 1)).astype(np.float32)
    targets = rng.normal(size=(2, 3, 4, 2)).astype(np.float32)
    return images, targets


def quadratic_learner(outer=0.7, **options):
    keras.utils.set_random_seed(1)
    learner = learners.Reptile(no_backbone(2), 2, inner_steps=3, inner_batch=4, **options)
    learner.network.loss = half_squared_error
    learner.compile(optimizer=keras.optimizers.SGD(outer))
    return learner


def weights_of(learner):
    return [v.numpy().astype(np.float64) for v in learner.network.variables]


def task_gradient(weights, images, targets):
    x = images.reshape(len(images), -1).astype(np.float64)
    error = (x @ weights[0] + weights[1] - targets) / len(x)
    return [x.T @ error, error.sum(0)]


def algorithm_2(theta, images, targets, optimizer, coefficient, outer, second=None, steps=0):
    """One meta-step in NumPy, lockstep over tasks; returns theta and the mean second moments."""
    tasks = [[w.copy() for w in theta] for _ in images]
    seconds = [[np.zeros_like(w) for w in theta] if second is None else [s.copy() for s in second] for _ in images]
    for j in range(images.shape[1]):
        mean = [np.mean([task[i] for task in tasks], axis=0) for i in range(2)]
        for p, task in enumerate(tasks):
            gradient = task_gradient(task, images[p, j], targets[p, j])
            for f in range(2):  # the filters of the kernel are its columns; the bias has none
                gradient[0][:, f] += coefficient * (task[0][:, f] - mean[0][:, f]) / np.sum(mean[0][:, f] ** 2)
            for i in range(2):
                if isinstance(optimizer, heads.Adam):
                    seconds[p][i] = 0.999 * seconds[p][i] + 0.001 * gradient[i] ** 2
                    rate = optimizer.learning_rate * np.sqrt(1 - 0.999 ** (steps + j + 1))
                    task[i] = task[i] - rate * gradient[i] / (np.sqrt(seconds[p][i]) + 1e-8)
                else:
                    task[i] = task[i] - optimizer.learning_rate * gradient[i]
    mean = [np.mean([task[i] for task in tasks], axis=0) for i in range(2)]
    second = [np.mean([s[i] for s in seconds], axis=0) for i in range(2)]
    return [w + outer * (m - w) for w, m in zip(theta, mean, strict=True)], second


def test_losses_way_and_size_of_the_pull_are_reported():
    """From the same weights nothing pulls; afterwards by SGD at one rate, in NumPy."""
    images, targets = quadratic_tasks()
    learner = quadratic_learner(inner_optimizer=heads.SGD(0.2), weight_clustering=0.4)
    theta = weights_of(learner)
    tasks, sizes, losses = [[w.copy() for w in theta] for _ in images], np.zeros(2), np.zeros((3, 2))
    for j in range(3):
        mean = np.mean([task[0] for task in tasks], axis=0)
        for p, task in enumerate(tasks):
            gradient = task_gradient(task, images[p, j], targets[p, j])
            error = images[p, j].reshape(4, 2) @ task[0] + task[1] - targets[p, j]
            losses[j, p] = (error**2).sum() / 8  # half the mean over 4 examples
            pull = 0.4 * (task[0] - mean) / np.sum(mean**2, axis=0)
            sizes += sum((g**2).sum() for g in gradient), (pull**2).sum()
            task[0] -= 0.2 * (gradient[0] + pull)
            task[1] -= 0.2 * gradient[1]
    reported = learner.train_step((tf.constant(images), tf.constant(targets)))
    np.testing.assert_allclose(reported["pull"], np.sqrt(sizes[1] / sizes[0]), rtol=1e-4)
    np.testing.assert_allclose([reported["loss"], reported["last_loss"]], [losses.mean(), losses[2].mean()], rtol=1e-4)
    travelled = np.mean([sum(((w - start) ** 2).sum() for w, start in zip(t, theta, strict=True)) for t in tasks])
    np.testing.assert_allclose(reported["travelled"], travelled, rtol=1e-4)
    assert "pull" not in quadratic_learner().train_step((tf.constant(images), tf.constant(targets)))


@pytest.mark.parametrize("coefficient", [0.0, 0.4])
@pytest.mark.parametrize("optimizer", [heads.SGD(0.2), heads.Adam(0.05)], ids=["sgd", "adam"])
def test_three_meta_steps_are_algorithm_2(optimizer, coefficient):
    learner = quadratic_learner(inner_optimizer=optimizer, weight_clustering=coefficient)
    images, targets = quadratic_tasks()
    theta, second = weights_of(learner), None
    for meta_step in range(3):
        learner.train_step((tf.constant(images), tf.constant(targets)))
        theta, second = algorithm_2(theta, images, targets, optimizer, coefficient, 0.7, second, steps=3 * meta_step)
    for expected, got in zip(theta, weights_of(learner), strict=True):
        np.testing.assert_allclose(got, expected, rtol=2e-4, atol=1e-5)
    if isinstance(optimizer, heads.Adam):
        assert float(learner.steps_taken) == 9
        for expected, variable in zip(second, learner.second_moments, strict=True):
            np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-3, atol=1e-8)


def test_the_penalty_is_half_the_gradient_of_the_squared_distance():
    rng = np.random.default_rng(2)
    mean = [rng.normal(size=(3, 3, 2, 4)).astype(np.float32), rng.normal(size=(4,)).astype(np.float32)]
    fast = [tf.constant(m + rng.normal(size=m.shape).astype(np.float32)) for m in mean]
    with tf.GradientTape() as tape:
        tape.watch(fast)
        squared = regularizers.filter_normalized_distance(fast, mean) ** 2
    by_kernel, by_bias = tape.gradient(squared, fast, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    pulls = clustering_gradient([f[None] for f in fast], [tf.constant(m) for m in mean])
    np.testing.assert_allclose(2 * pulls[0][0], by_kernel, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(pulls[1][0], by_bias)
    assert not np.any(by_bias)


def test_two_quadratic_tasks_contract_and_settle_where_derived():
    """L_i = |w - a_i|^2 / 2, a_1 = (3, 2), a_2 = (1, 2), from w = (2, 2), one input, so that a filter is one number.

    By symmetry the mean stays (2, 2), |mean_f|^2 = 4, and the distance of the tasks in the first filter follows
    d <- d (1 - eta - eta c / 4) + eta (3 - 1): with eta = 0.4 and c = 2 it is 0.8, 0.8 * 0.4 + 0.8 = 1.12, ... and
    settles at 2 / (1 + c / 4) = 4 / 3. Nothing moves in the second.
    """
    keras.utils.set_random_seed(0)
    learner = learners.Reptile(no_backbone(1), 2, 20, 1, inner_optimizer=heads.SGD(0.4), weight_clustering=2.0)
    learner.network.loss = lambda outputs, targets: tf.reduce_sum(tf.square(outputs - targets)) / 2
    learner.adapts = (True, False)
    kernel, bias = learner.network.variables
    kernel.assign([[2.0, 2.0]])
    bias.assign([0.0, 0.0])
    images = tf.ones([2, 20, 1, 1, 1, 1])
    targets = tf.tile(tf.constant([[[[3.0, 2.0]]], [[[1.0, 2.0]]]]), [1, 20, 1, 1])
    for steps, distance in ((1, 0.8), (2, 1.12), (20, 4 / 3)):
        learner.inner_steps = steps
        ends = learner.inner_loop(images, targets)[0][0].numpy()[:, 0]  # [T, 2]
        np.testing.assert_allclose(ends.mean(axis=0), [2.0, 2.0], atol=1e-6)
        np.testing.assert_allclose(ends[0] - ends[1], [distance, 0.0], atol=1e-6)


def pictures_learner(coefficient=0.0, **options):
    keras.utils.set_random_seed(0)
    learner = learners.Reptile(small_network(), 3, 2, 4, weight_clustering=coefficient, **options)
    learner.compile(optimizer=keras.optimizers.SGD(0.5))
    return learner


def picture_batches(tasks=3, steps=2, first=0):
    return next(iter(data.inner_batches(make_split(), 3, 4, steps, 4, tasks, first_step=first)))


def test_without_clustering_the_tasks_do_not_see_each_other(monkeypatch):
    """Coefficient 0 is Reptile and computes nothing else: each task ends where it ends alone."""

    def never(*_):
        raise AssertionError("the mean of the tasks was asked for")

    monkeypatch.setattr(reptile, "clustering_gradient", never)
    learner, (images, labels) = pictures_learner(), picture_batches()
    together = learner.inner_loop(images, labels)[0]
    for task in range(3):
        alone = learner.inner_loop(images[task : task + 1], labels[task : task + 1])[0]
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_allclose(a[task], b[0], rtol=1e-5, atol=1e-6)
    with pytest.raises(AssertionError, match="asked for"):
        pictures_learner(0.1).inner_loop(images, labels)


def test_clustering_brings_the_tasks_together():
    images, labels = picture_batches()

    def spread(coefficient):
        fast = pictures_learner(coefficient, inner_optimizer=heads.SGD(0.1)).inner_loop(images, labels)[0]
        return sum(float(tf.reduce_sum(tf.math.reduce_variance(w, axis=0))) for w in fast if w.shape.rank > 2)

    assert spread(2.0) < 0.95 * spread(0.0)


def test_one_task_has_nothing_to_be_pulled_to():
    images, labels = (x[:1] for x in picture_batches())
    ends = [pictures_learner(coefficient).inner_loop(images, labels)[0] for coefficient in (0.0, 0.5)]
    for a, b in zip(*ends, strict=True):
        np.testing.assert_array_equal(a, b)


def test_adam_is_tensorflows_without_momentum():
    """Keras's Adam puts epsilon after the bias correction as TensorFlow 1 does; beta_1 = 0 takes the momentum out."""
    rng = np.random.default_rng(0)
    variable = keras.Variable(rng.normal(size=(4, 3)).astype(np.float32))
    reference = keras.optimizers.Adam(0.01, beta_1=0.0, epsilon=1e-8)
    weights, adam = [variable.value], heads.Adam(0.01)
    moments = adam.start(weights)
    for _ in range(5):
        gradient = tf.constant(rng.normal(size=(4, 3)).astype(np.float32))
        weights, moments = adam.step(weights, [gradient], moments)
        reference.apply([gradient], [variable])
    np.testing.assert_allclose(weights[0], variable.numpy(), rtol=1e-5)


def test_second_moments_outlive_the_meta_step_and_reach_evaluation():
    learner = pictures_learner()
    learner.train_step(picture_batches())
    learner.train_step(picture_batches(first=1))
    assert float(learner.steps_taken) == 4
    moments = learner.own_head().moments()
    assert float(moments.steps) == 4
    assert max(np.abs(m.numpy()).max() for m in moments.second) > 0
    for kept, variable in zip(moments.second, learner.second_moments, strict=True):
        np.testing.assert_array_equal(kept, variable.numpy())


@pytest.mark.parametrize("transductive", [False, True])
def test_its_head_goes_on_as_the_training_does(transductive):
    """From the learned classifier and second moments, on batches of 4 of 6 support images, under its protocol."""
    learner = pictures_learner(inner_optimizer=heads.Adam(0.01), evaluation_steps=3, evaluation_batch=4,
                               transductive=transductive)
    for i in range(2):
        learner.train_step(picture_batches(first=i))
    support, labels, query, _ = next(iter(data.episodes(make_split(), 3, 2, 2, tasks_per_batch=2)))
    logits = learner.own_head()(learner.backbone, support, labels, query, 3)
    network = learner.network
    for t in range(2):
        fast, moments = network.weights, learner.moments
        for chosen in batch_orders(3, 4, 6, tf.constant([0, t])):
            seen = tf.gather(support[t], chosen), tf.gather(labels[t], chosen)
            fast, moments = learner.inner_optimizer.step(
                fast, gradients_of(network, fast, *seen, learner.adapts).gradients, moments
            )
        if transductive:
            expected = network.logits(fast, query[t])[0]
        else:
            together = (tf.concat([support[t], image[None]], axis=0) for image in query[t])
            expected = tf.stack([network.logits(fast, images)[0][-1] for images in together])
        np.testing.assert_allclose(logits[t], expected, rtol=1e-3, atol=1e-3)


def test_running_statistics_are_those_of_the_unadapted_network():
    learner, (images, labels) = pictures_learner(inner_optimizer=heads.SGD(0.5)), picture_batches()
    weights, state = learner.network.weights, learner.network.state
    expected = [learner.network.logits(weights, images[t, 0], state)[1] for t in range(3)]
    learner.train_step((images, labels))
    for value, *tasks in zip(learner.network.state, *expected, strict=True):
        np.testing.assert_allclose(value, np.mean(tasks, axis=0), rtol=1e-5, atol=1e-5)


def test_every_inner_step_drops_something_else():
    keras.utils.set_random_seed(0)
    learner = learners.Reptile(backbones.r2d2((16, 16, 3), filters=(4, 4, 4, 4), seed=0), 3, 2, 4)
    learner.compile(optimizer=keras.optimizers.SGD(0.5))
    learner.train_step(picture_batches())
    counted = [int(layer.forwards) for layer in learner.backbone.layers if hasattr(layer, "forwards")]
    assert counted and set(counted) == {2}


def test_the_outer_rate_falls_linearly_over_the_run():
    """(1 - i / n) start + (i / n) end, n = 4 epochs of 5 steps."""
    rate = learners.annealed_sgd(steps_per_epoch=5, total_epochs=4, start=0.8, end=0.2)._learning_rate
    np.testing.assert_allclose([rate(i) for i in (0, 5, 10, 20)], [0.8, 0.65, 0.5, 0.2], rtol=1e-6)


def test_its_configuration_makes_the_same_learner():
    arguments = {"ways": 3, "inner_steps": 2, "inner_batch": 4, "weight_clustering": 0.1, "sum_over_batch": True,
                 "evaluation_steps": 3, "evaluation_batch": 5, "batchnorm": "transductive", "parallel_tasks": 1,
                 "weight_decay": 5e-4}  # fmt: skip
    learner = learners.Reptile(small_network(), inner_optimizer=heads.Adam(0.02), **arguments)
    again = learners.Reptile.from_config(learner.get_config())
    assert again.inner_optimizer == heads.Adam(0.02)
    config = again.get_config()
    assert {name: config[name] for name in arguments} == arguments


def test_learns_saves_and_loads(tmp_path):
    split = make_split()
    keras.utils.set_random_seed(0)
    learner = learners.Reptile(small_network(filters=4), 3, 5, 6, inner_optimizer=heads.Adam(0.01),
                               weight_clustering=1e-4, evaluation_steps=5)
    learner.compile(optimizer=keras.optimizers.SGD(0.5))
    tasks = {"ways": 3, "shots": 2, "queries": 3, "num_tasks": 30}
    before = evaluate(learner.backbone, learner.own_head(), split, **tasks)
    learner.fit(data.inner_batches(split, 3, 8, 5, 6, 3), steps_per_epoch=40, verbose=0)
    after = evaluate(learner.backbone, learner.own_head(), split, **tasks)
    assert after.mean > before.mean + 0.1 and "each query" in after.batchnorm
    learner.save(tmp_path / "reptile.keras")
    loaded = keras.models.load_model(tmp_path / "reptile.keras")
    assert loaded.inner_optimizer == heads.Adam(0.01) and loaded.weight_clustering == 1e-4
    again = evaluate(loaded.backbone, loaded.own_head(), split, **tasks)
    np.testing.assert_array_equal(again.per_task, after.per_task)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_moves_as_far_as_single_precision(policy):
    def moved():
        learner = pictures_learner(inner_optimizer=heads.Adam(0.01))
        before = [v.numpy() for v in learner.network.variables]
        for i in range(2):
            learner.train_step(picture_batches(first=i))
        return np.sqrt(sum(float(((v.numpy() - b) ** 2).sum())
                           for v, b in zip(learner.network.variables, before, strict=True)))

    single = moved()
    keras.config.set_dtype_policy(policy)
    try:
        half = moved()
    finally:
        keras.config.set_dtype_policy("float32")
    np.testing.assert_allclose(half, single, rtol=0.2)


def test_it_can_be_watched_without_being_trained():
    learner = pictures_learner()
    before = [v.numpy() for v in learner.variables if "loss" not in v.path]
    logs = learner.test_step(picture_batches())
    assert float(logs["loss"]) > 0
    for a, b in zip(before, [v.numpy() for v in learner.variables if "loss" not in v.path], strict=True):
        np.testing.assert_array_equal(a, b)


def test_batches_that_do_not_fit_are_refused():
    learner = pictures_learner()
    with pytest.raises(ValueError, match="inner_steps=2"):
        learner.train_step(picture_batches(steps=3))
    with pytest.raises(ValueError, match="inner_steps=2"):
        learner.check_batch(data.inner_batches(make_split(), 3, 4, 3, 4, 2).element_spec)
    with pytest.raises(ValueError, match="InnerBatches.*'inner_steps = 2'.*'inner_batch = 4'"):  # the gin macros
        learner.check_batch(data.inner_batches(make_split(), 3, 4, 3, 4, 2).element_spec)
    for others in (data.class_pairs(make_split(), 8), data.episodes(make_split(), 3, tasks_per_batch=2)):
        with pytest.raises(ValueError, match="Received: "):
            learner.check_batch(others.element_spec)


@pytest.mark.parametrize("bad", [
    {"weight_clustering": -1}, {"weight_clustering": float("inf")}, {"weight_clustering": "5e-5"},
    {"weight_decay": -1e-4}, {"parallel_tasks": 0}, {"evaluation_steps": -1}, {"evaluation_batch": 0},
    {"inner_optimizer": "adam"},
])  # fmt: skip
def test_bad_arguments_are_refused_by_the_name_the_user_gave_them(bad):
    (name, value), = bad.items()
    with pytest.raises(ValueError, match=f"{name}.*Received: .*{re.escape(repr(value))}") as caught:
        learners.Reptile(small_network(), 3, **bad)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("other", [learners.adam, heads.Adam, keras.optimizers.Adam(0.1)])
def test_an_optimizer_of_the_outer_step_is_no_inner_optimizer(other):
    with pytest.raises(ValueError, match=r"inner_optimizer .* @heads.Adam\(\).*Received: "):
        learners.Reptile(small_network(), 3, inner_optimizer=other)


def test_summing_over_the_batch_is_a_longer_step_in_training_and_evaluation():
    """4 images a batch: the sum at a quarter of the rate is the mean."""
    images, labels = picture_batches()
    summed = pictures_learner(inner_optimizer=heads.SGD(0.1 / 4), sum_over_batch=True, evaluation_batch=4)
    mean = pictures_learner(inner_optimizer=heads.SGD(0.1), evaluation_batch=4)
    for a, b in zip(summed.inner_loop(images, labels)[0], mean.inner_loop(images, labels)[0], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    episode = next(iter(data.episodes(make_split(), 3, 2, 2, tasks_per_batch=2)))
    arguments = (episode.support_images, episode.support_labels, episode.query_images, 3)
    logits = [learner.own_head()(learner.backbone, *arguments) for learner in (summed, mean)]
    np.testing.assert_allclose(*logits, rtol=1e-3, atol=1e-4)
    assert "summed loss" in summed.own_head().adaptation
