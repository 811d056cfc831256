"""What every head must do, whichever it is."""

import numpy as np
import pytest
import tensorflow as tf

from tests.heads.problems import directional_derivatives, inner_products, make_tasks, relative_error
from tf_unravel.heads import SVM, FineTune, Kernels, Linear, Prototypes, Ridge, by_name, kernels

HEADS = [Prototypes(), Prototypes(normalize=True), Ridge(), SVM(), Linear(), Linear(bias=False)]
each_head = pytest.mark.parametrize("head", HEADS, ids=str)


def call(head, tasks, dtype=np.float64):
    return head(tasks.support.astype(dtype), tasks.labels, tasks.query.astype(dtype), tasks.ways)


def test_names():
    assert by_name == {
        "prototypes": Prototypes, "ridge": Ridge, "svm": SVM, "linear": Linear, "fine_tune": FineTune
    }  # fmt: skip
    assert hash(Ridge(l2=3.0)) == hash(Ridge(l2=3.0)) and Ridge(l2=3.0) != Ridge(l2=4.0)
    assert repr(Ridge(l2=3.0)) == "Ridge(l2=3.0)" and Ridge().name == "ridge"


@each_head
@pytest.mark.parametrize(("shots", "dimension"), [((1,) * 5, 30), ((2, 1, 3), 30), ((6, 7), 5)])
def test_inner_products_are_enough(head, shots, dimension):
    tasks = make_tasks(shots, dimension)
    by_kernels = head.logits(kernels(tasks.support, tasks.query), tasks.labels, tasks.ways)
    assert relative_error(by_kernels, call(head, tasks).numpy()) < 1e-8


@each_head
def test_a_batch_is_its_tasks_one_at_a_time(head):
    tasks = make_tasks((2, 1, 3), 20, tasks=5)
    together = call(head, tasks).numpy()
    for t in range(5):
        one = head(tasks.support[t : t + 1], tasks.labels[t : t + 1], tasks.query[t : t + 1], 3)
        np.testing.assert_allclose(one[0], together[t], rtol=1e-9, atol=1e-12)


@each_head
def test_order_of_examples_and_names_of_classes_do_not_matter(head):
    tasks = make_tasks((2, 1, 3), 20, tasks=2)
    logits = call(head, tasks).numpy()
    order, names = np.random.default_rng(5).permutation(6), np.array([2, 0, 1])
    other = head(tasks.support[:, order], names[tasks.labels[:, order]], tasks.query, 3).numpy()
    np.testing.assert_allclose(other[..., names], logits, rtol=1e-8, atol=1e-10)


@each_head
@pytest.mark.parametrize(
    ("shots", "dimension"), [((1,) * 5, 12), ((3,) * 4, 30), ((2, 1, 3), 20), ((8, 6), 5)], ids=str
)
def test_gradients_by_finite_differences(head, shots, dimension):
    if isinstance(head, SVM):
        head = SVM(tolerance=1e-13)
    tasks = make_tasks(shots, dimension, tasks=2, positive=True, seed=2)
    for by_tape, by_differences in directional_derivatives(head, tasks):
        assert by_tape != 0.0
        assert abs(by_tape - by_differences) < 2e-5 * max(abs(by_tape), abs(by_differences))


@each_head
def test_sizes_unknown_when_the_graph_is_built(head):
    traces = []

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, 8], tf.float64),
            tf.TensorSpec([None, None], tf.int32),
            tf.TensorSpec([None, None, 8], tf.float64),
            tf.TensorSpec([], tf.int32),
        ]
    )
    def graph(support, labels, query, ways):
        traces.append(1)
        with tf.GradientTape() as tape:
            tape.watch(support)
            logits = head(support, labels, query, ways)
        return logits, tape.gradient(logits, support)

    for shots, tasks in (((1,) * 5, 2), ((6, 7), 3)):  # S < D, then S > D
        made = make_tasks(shots, 8, tasks=tasks)
        logits, gradient = graph(made.support, made.labels, made.query, made.ways)
        np.testing.assert_allclose(logits, call(head, made), rtol=1e-8, atol=1e-10)
        assert np.isfinite(gradient).all()
    assert len(traces) == 1


@each_head
def test_types(head):
    tasks = make_tasks((2, 2), 10)
    expected = call(head, tasks).numpy()
    assert call(head, tasks).dtype == tf.float64
    for dtype, tolerance in ((tf.float32, 1e-5), (tf.float16, 2e-2), (tf.bfloat16, 2e-1)):
        logits = head(tf.cast(tasks.support, dtype), tasks.labels, tf.cast(tasks.query, dtype), 2)
        assert logits.dtype == tf.float32
        assert relative_error(logits, expected) < tolerance
    assert head.logits(inner_products(tasks, np.float32), tasks.labels, 2).dtype == tf.float32


@each_head
@pytest.mark.parametrize("ways", [2, 100])
def test_many_ways(head, ways):
    tasks = make_tasks((1,) * ways, 150, tasks=1)
    logits = call(head, tasks, np.float32).numpy()
    assert logits.shape == (1, 7, ways) and np.isfinite(logits).all()
    on_support = head(tasks.support, tasks.labels, tasks.support, ways).numpy()
    assert (on_support.argmax(-1) == tasks.labels).all()


def degenerate(name):
    tasks = make_tasks((3, 2, 4), 12)
    support = {
        "all examples equal": np.broadcast_to(tasks.support[:, :1], tasks.support.shape),
        "duplicates across classes": np.repeat(tasks.support[:, :3], 3, axis=1),
        "constant features": np.full_like(tasks.support, 3.0),
        "zeros": np.zeros_like(tasks.support),
        "one example huge": tasks.support * np.where(np.arange(9) == 4, 1e6, 1.0)[None, :, None],
        "one feature": np.broadcast_to(tasks.support[..., :1], tasks.support.shape),
        "rank one": tasks.support[..., :1] * tasks.support[:, :1],
    }[name]
    return tasks._replace(support=np.array(support))


@each_head
@pytest.mark.parametrize(
    "name",
    ["all examples equal", "duplicates across classes", "constant features", "zeros", "one example huge",
     "one feature", "rank one"],
)  # fmt: skip
def test_degenerate_support_sets_stay_finite(head, name):
    tasks = degenerate(name)
    support = tf.constant(tasks.support.astype(np.float32))
    with tf.GradientTape() as tape:
        tape.watch(support)
        logits = head(support, tasks.labels, tasks.query.astype(np.float32), 3)
    assert np.isfinite(logits).all()
    assert np.isfinite(tape.gradient(logits, support)).all()


@each_head
@pytest.mark.parametrize("shots", [(2, 2), (5, 6)], ids=["S<D", "S>D"])
@pytest.mark.parametrize("scale", [1e-20, 1e-10, 1e3, 1e6, 1e15])
def test_any_scale_in_float32(head, scale, shots):
    tasks = make_tasks(shots, 8, scale=scale)
    support = tf.constant(tasks.support.astype(np.float32))
    with tf.GradientTape() as tape:
        tape.watch(support)
        logits = head(support, tasks.labels, tasks.query.astype(np.float32), 2)
    assert np.isfinite(logits).all()
    assert np.isfinite(tape.gradient(logits, support)).all()
    if scale >= 1e3 and len(tasks.labels[0]) < 8 and not isinstance(head, Prototypes):
        on_support = head(tasks.support.astype(np.float32), tasks.labels, tasks.support.astype(np.float32), 2)
        assert (on_support.numpy().argmax(-1) == tasks.labels).all()


@each_head
@pytest.mark.parametrize("scale", [1e20, 1e30])
def test_overflow_is_one_clear_error(head, scale):
    tasks = make_tasks((2, 2), 8, scale=scale)
    with pytest.raises(ValueError, match="logits are not finite.*scale the features down"):
        call(head, tasks, np.float32)


@each_head
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_features(head, bad):
    tasks = make_tasks((2, 2), 8, tasks=3)
    clean = call(head, tasks).numpy()
    tasks.support[1, 2, 3] = bad
    with pytest.raises(ValueError, match="The logits are not finite.*Received"):
        call(head, tasks)
    with pytest.raises(ValueError, match="The logits are not finite"):
        head.logits(inner_products(tasks), tasks.labels, 2)
    # In a graph the bad task alone is marked, so that a training loop sees a non-finite loss.
    logits = tf.function(lambda s, q: head(s, tasks.labels, q, 2))(tasks.support, tasks.query).numpy()
    np.testing.assert_allclose(logits[[0, 2]], clean[[0, 2]], rtol=1e-9)
    assert not np.isfinite(logits[1]).all()


@each_head
@pytest.mark.parametrize(
    ("labels", "ways", "message"),
    [
        ([[0, 1, 2, 2]], 2, r"must lie in 0..ways-1. Received: labels 0..2, ways=2"),
        ([[0, 1, -1, 0]], 2, r"must lie in 0..ways-1. Received: labels -1..1, ways=2"),
        ([[0, 0, 0, 0]], 1, "at least two classes. Received: ways=1"),
        ([[0, 0, 2, 2]], 3, "no example of label 1 in task 0, ways=3"),
        ([0, 0, 1, 1], 2, r"must be \[tasks, examples\].*Received: shape \(4,\)"),
        ([[0.0, 0.0, 1.0, 1.0]], 2, "must be integers.*Received: dtype float32"),
    ],
)
def test_bad_labels(head, labels, ways, message):
    features = np.random.default_rng(0).normal(size=(1, 4, 6)).astype(np.float32)
    with pytest.raises(ValueError, match=message):
        head(features, labels, features, ways)
    with pytest.raises(ValueError, match=message):
        head.logits(kernels(features, features), labels, ways)


@each_head
def test_wrong_ranks(head):
    with pytest.raises(ValueError, match="support features must be"):
        head(np.ones([4, 6]), [[0, 0, 1, 1]], np.ones([1, 4, 6]), 2)


@each_head
def test_no_tasks_at_all(head):
    logits = head(np.zeros([0, 4, 6]), np.zeros([0, 4], int), np.zeros([0, 3, 6]), 2)
    assert logits.shape == (0, 3, 2)


def test_kernels_is_a_tuple_that_graphs_take():
    tasks = make_tasks((2, 2), 8)
    inner = inner_products(tasks)
    logits = tf.function(lambda *parts: Ridge().logits(Kernels(*parts), tasks.labels, 2))(*inner)
    np.testing.assert_allclose(logits, call(Ridge(), tasks), rtol=1e-9)
