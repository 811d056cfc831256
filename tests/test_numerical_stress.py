"""Numbers at the edge of what they can be: finite output or one clear line, never a silent NaN.

The heads' own file has degenerate support sets and any scale in float32; this one has half precision, as many
classes as features and more, fine-tuning, and what is measured of features.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import make_split
from tests.heads.problems import make_tasks
from tests.heads.test_heads import each_head
from tests.learners.problems import small_network
from tests.test_regularizers import CASES, IDS, features
from tf_unravel import analysis, heads

HALVES = ("float16", "bfloat16")


def outcome(call) -> np.ndarray | str:
    """What it gives, or the line that it refuses with."""
    try:
        return np.asarray(call(), np.float64)
    except ValueError as error:
        assert "\n" not in str(error) and "Received: " in str(error)
        return str(error)


@each_head
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("shots", [(2, 2), (6, 7)], ids=["S<D", "S>D"])
def test_half_precision_of_any_scale(head, dtype, shots):
    refused = []
    for scale in (1e-20, 1e-8, 1e-4, 1.0, 1e4, 1e15, 1e20):  # float16 holds 0 for the first, infinity for the last
        tasks = make_tasks(shots, 8, scale=scale)
        support, query = tf.cast(tasks.support, dtype), tf.cast(tasks.query, dtype)
        found = outcome(lambda head=head, s=support, y=tasks.labels, q=query: head(s, y, q, 2))
        assert isinstance(found, str) or np.isfinite(found).all()
        refused += [scale] if isinstance(found, str) else []
    assert refused == [1e15, 1e20] if dtype == "float16" else refused in ([], [1e20])


@each_head
@pytest.mark.parametrize(("ways", "dimension"), [(2, 1), (37, 3), (100, 3), (100, 150)])
def test_more_classes_than_features(head, ways, dimension):
    """The Gram matrix [100, 100] is of rank 3 then."""
    tasks = make_tasks((1,) * ways, dimension, tasks=1)
    for dtype in (*HALVES, "float32"):
        support = tf.cast(tasks.support, dtype)
        with tf.GradientTape() as tape:
            tape.watch(support)
            logits = head(support, tasks.labels, tf.cast(tasks.query, dtype), ways)
        assert logits.shape == (1, 7, ways) and np.isfinite(logits).all()
        assert np.isfinite(tf.cast(tape.gradient(logits, support), tf.float32)).all()


IMAGES = make_split(3, per_class=4).images.astype(np.float32)
LABELS = np.repeat(np.arange(3), 4)[None]
STRANGE = {
    "one picture for all": np.broadcast_to(IMAGES[:1], IMAGES.shape),
    "black": np.zeros_like(IMAGES),
    "white": np.full_like(IMAGES, 255.0),
    "twice across classes": IMAGES[[0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7]],
    "beyond 255": IMAGES * 1e3,
}


@pytest.mark.parametrize("batchnorm", ["running", "support", "transductive"])
def test_fine_tuning_on_strange_pictures(batchnorm):
    head, backbone = heads.FineTune(steps=3, learning_rate=0.01, batchnorm=batchnorm), small_network()
    for name, images in STRANGE.items():
        logits = head(backbone, images[None], LABELS, IMAGES[None], 3)
        assert np.isfinite(logits).all(), name


@pytest.mark.parametrize("what", ["the backbone", "the pictures"])
def test_fine_tuning_on_nan_is_one_line(what):
    """Of a network that lets NaN through: TensorFlow's ReLU on a CPU makes 0 of it."""
    layers = [keras.layers.Input((16, 16, 3)), keras.layers.Flatten(), keras.layers.Dense(4)]
    head, backbone, images = heads.FineTune(steps=2), keras.Sequential(layers), IMAGES[None].copy()
    if what == "the backbone":
        backbone.set_weights([np.full_like(value, np.nan) for value in backbone.get_weights()])
    else:
        images[0, 5, 3, 3] = np.nan
    found = outcome(lambda: head(backbone, images, LABELS, images, 3))
    assert "The logits of fine_tune are not finite: it diverged, or the backbone or the images hold NaN" in found


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [*HALVES, "float32", "float64"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_regularizer_hides_no_nan(case, dtype, bad):
    """The loss that it is added to must show it, for the loop to stop (`TrainingDiverged`)."""
    for place in ((0, 0), (7, 4)):
        x = features(1)
        x[place] = bad
        assert not np.isfinite(CASES[case](tf.cast(x, dtype), IDS))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("ids", [np.zeros(8, int), np.arange(8), np.array([0] * 7 + [1])], ids=["one", "single", "7+1"])
def test_batches_of_few_pairs(case, ids):
    """One class; classes of one sample; one that stands alone."""
    for scale in (1e-30, 1e-20, 1.0, 1e20, 1e30):
        x = tf.constant(features(1, ids) * scale, tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = CASES[case](x, ids)
        assert np.isfinite(loss) and loss >= 0 and np.isfinite(tape.gradient(loss, x)).all()


def test_measurements_of_features_of_any_scale():
    ids = np.repeat(np.arange(4), 10)
    plain = features(3, ids, 7)
    expected, plane = analysis.class_separation(plain, ids, 100), np.abs(analysis.lda_projection(plain, ids))
    for dtype, scale in ((np.float32, 1e-20), (np.float32, 1e20), (np.float64, 1e-20), (np.float64, 1e20)):
        found = analysis.class_separation((plain * scale).astype(dtype), ids, 100)
        for name in ("r_fc", "r_hv", "variance_ratio"):
            assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-4)
        drawn = analysis.lda_projection((plain * scale).astype(dtype), ids)
        np.testing.assert_allclose(np.abs(drawn), plane, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("measure", [analysis.class_separation, analysis.pair_ratios, analysis.lda_projection])
def test_measurements_refuse_what_is_not_finite(measure, bad):
    ids = np.repeat(np.arange(4), 10)
    x = features(3, ids, 7)
    x[11, 2] = bad
    assert "must be finite" in outcome(lambda: measure(x, ids))
    assert "must be finite" in outcome(lambda: measure((features(3, ids, 7) * 1e20).astype(np.float16), ids))
