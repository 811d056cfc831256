import warnings

import numpy as np
import pytest
import tensorflow as tf
from sklearn.linear_model import LogisticRegression

from tests.heads.problems import inner_products, make_tasks, relative_error
from tf_unravel.heads import Linear
from tf_unravel.heads.linear import minimise, solve


def centred(logits):
    return np.asarray(logits) - np.asarray(logits).mean(-1, keepdims=True)


def scikit_learn(tasks, l2, bias, count=2):
    result = []
    for x, labels, query in list(zip(tasks.support, tasks.labels, tasks.query, strict=True))[:count]:
        basis = np.linalg.qr(x.T)[0]  # the solution lies in the span of the examples, S dimensions instead of D
        model = LogisticRegression(C=1 / l2, fit_intercept=bias, tol=1e-12, max_iter=500, solver="newton-cholesky")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(x @ basis, labels)
        scores = model.decision_function(query @ basis)
        if tasks.ways == 2:
            scores = model.predict_log_proba(query @ basis)
        result.append(centred(scores))
    return np.stack(result)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("shots", "dimension"), [((1,) * 5, 60), ((5,) * 5, 60), ((6,) * 3, 4), ((1, 4, 2), 60), ((2,) * 12, 40)]
)
def test_against_scikit_learn(shots, dimension, bias, scale):
    tasks = make_tasks(shots, dimension, scale=scale, positive=True)
    expected = scikit_learn(tasks, 1.0, bias)
    head = Linear(bias=bias)
    logits = head(tasks.support, tasks.labels, tasks.query, tasks.ways)
    assert relative_error(centred(logits)[:2], expected) < 1e-4
    single = [x.astype(np.float32) for x in (tasks.support, tasks.query)]
    assert relative_error(centred(head(single[0], tasks.labels, single[1], tasks.ways))[:2], expected) < 1e-4
    assert head.gradient_norm(inner_products(tasks), tasks.labels, tasks.ways).numpy().max() < 1e-10


def test_two_classes_and_another_l2():
    tasks = make_tasks((4, 7), 20)
    logits = Linear(l2=0.2)(tasks.support, tasks.labels, tasks.query, 2)
    # Softmax weights of two classes are +-w/2, penalised by ||w||^2 / 4: half of the binary model's penalty.
    result = []
    for t in range(2):
        model = LogisticRegression(C=2 / 0.2, tol=1e-12, max_iter=500, solver="newton-cholesky")
        model.fit(tasks.support[t], tasks.labels[t])
        result.append(model.decision_function(tasks.query[t]))
    assert relative_error(logits.numpy()[:2, :, 1] - logits.numpy()[:2, :, 0], np.stack(result)) < 1e-6


@pytest.mark.parametrize("scale", [1e3, 1e6])
def test_converges_from_zero_for_badly_scaled_features(scale):
    tasks = make_tasks((5,) * 5, 60, scale=scale, positive=True)
    head = Linear()
    assert head.gradient_norm(inner_products(tasks), tasks.labels, 5).numpy().max() < 1e-9
    logits = head(tasks.support, tasks.labels, tasks.support, 5).numpy()
    assert (logits.argmax(-1) == tasks.labels).all()
    # Rounding keeps the last steps from becoming small; it must not use up the iterations either.
    hessian, targets = inner_products(tasks).support, tf.one_hot(tasks.labels, 5, dtype=tf.float64)
    assert minimise(hessian, targets, True, 1e-6, 100)[1].numpy().max() < 60


def test_the_gradient_norm_tells_an_early_stop():
    tasks = make_tasks((5,) * 5, 60)
    assert Linear(max_iterations=1).gradient_norm(inner_products(tasks), tasks.labels, 5).numpy().min() > 1e-4


def test_gradient_norm_is_that_of_the_primal():
    tasks = make_tasks((3, 2), 7, tasks=1)
    kernel, targets = inner_products(tasks).support, tf.one_hot(tasks.labels, 2, dtype=tf.float64)
    alpha, offset, norm = solve(kernel, targets, l2=2.0, max_iterations=2)
    x, y = tasks.support[0], targets[0]
    weights, offset = tf.constant(x.T @ alpha[0].numpy()), offset[0]

    def gradient(weights, offset):
        with tf.GradientTape() as tape:
            tape.watch([weights, offset])
            losses = tf.nn.softmax_cross_entropy_with_logits(y, x @ weights + offset)
            loss = tf.reduce_sum(losses) + tf.reduce_sum(weights**2)  # l2 / 2 = 1
        return tf.linalg.global_norm(tape.gradient(loss, [weights, offset]))

    at_zero = gradient(tf.zeros_like(weights), tf.zeros_like(offset))
    np.testing.assert_allclose(norm[0], gradient(weights, offset) / at_zero, rtol=1e-6)


def test_bias_is_unregularized_and_has_mean_zero():
    # Features too small to matter: the bias alone must give the class frequencies, whatever l2.
    tasks = make_tasks((1, 2, 5), 10, scale=1e-6)
    logits = Linear(l2=100.0)(tasks.support, tasks.labels, tasks.query, 3)
    expected = np.log([1, 2, 5]) - np.log([1, 2, 5]).mean()
    np.testing.assert_allclose(logits.numpy(), np.broadcast_to(expected, logits.shape), atol=1e-5)


def test_every_constant_must_be_positive():
    for name in ("l2", "tolerance", "max_iterations"):
        with pytest.raises(ValueError, match=f"positive, finite {name}. Received: {name}=0"):
            Linear(**{name: 0})
