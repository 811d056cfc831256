import numpy as np
import pytest
import tensorflow as tf

from tf_unravel.heads import kernels
from tf_unravel.heads.inner_products import gram, one_hot_targets, regularized


def test_inner_products_of_a_small_example():
    support = tf.constant([[[1.0, 2.0], [3.0, -1.0]]])
    query = tf.constant([[[2.0, 5.0], [0.0, 1.0], [1.0, 1.0]]])
    inner = kernels(support, query)
    assert inner.support.numpy().tolist() == [[[5.0, 1.0], [1.0, 10.0]]]
    assert inner.cross.numpy().tolist() == [[[12.0, 1.0], [2.0, -1.0], [3.0, 2.0]]]
    assert inner.query_norms.numpy().tolist() == [[29.0, 1.0, 2.0]]
    assert inner.dimension == 2


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float16", "float32"), ("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")],
)
def test_half_precision_is_cast_up_before_multiplying(dtype, expected):
    support = tf.cast(tf.fill([1, 2, 1000], 20.0), dtype)  # 400,000 overflows float16
    inner = kernels(support, support)
    assert inner.support.dtype == expected
    assert float(inner.support[0, 0, 1]) == 400_000.0


def test_gram_is_double_where_examples_outnumber_features():
    assert gram(tf.ones([1, 3, 2])).dtype == tf.float64
    assert gram(tf.ones([1, 2, 3])).dtype == tf.float32


def test_targets_of_unequal_classes():
    targets = one_hot_targets([[2, 0, 1, 2]], 3)
    assert targets.numpy().tolist() == [[[0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]]


def test_regularized_raises_l2_to_rounding():
    small, finite = regularized(tf.eye(4, batch_shape=[1]), 0.5)
    np.testing.assert_allclose(small[0], 1.5 * np.eye(4))
    assert finite.numpy().tolist() == [True]
    duplicates = tf.fill([1, 4, 4], tf.constant(1e12))
    matrix, _ = regularized(duplicates, 0.5)
    floor = 2 * np.finfo(np.float32).eps * np.sqrt(4) * 1e12
    np.testing.assert_allclose(np.linalg.eigvalsh(matrix[0])[:3], floor, rtol=1e-3)
    broken, finite = regularized(tf.constant([[[np.nan, 0.0], [0.0, 1.0]]]), 0.5)
    assert finite.numpy().tolist() == [False] and np.isfinite(broken).all()


@pytest.mark.parametrize(
    ("support", "query", "message"),
    [
        (np.ones([5, 4]), np.ones([1, 3, 4]), r"support features must be \[tasks.*Received: shape \(5, 4\)"),
        (np.ones([1, 5, 4]), np.ones([3, 4]), r"query features must be \[tasks.*Received: shape \(3, 4\)"),
        (np.ones([1, 5, 4]), np.ones([1, 3, 6]), "equal feature sizes.*Received"),
        (np.ones([2, 5, 4]), np.ones([1, 3, 4]), "equal numbers of tasks.*Received"),
    ],
)
def test_wrong_shapes_are_named(support, query, message):
    with pytest.raises(ValueError, match=message):
        kernels(support, query)
