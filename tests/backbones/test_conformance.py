"""What every backbone promises: raw pixels in, [B, D] out, saved and restored whole, differentiable twice."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_unravel import backbones

SMALL = {
    "conv4": lambda **options: backbones.conv4((16, 16, 3), filters=4, use_bias=True, **options),
    "r2d2": lambda **options: backbones.r2d2((16, 16, 3), filters=(3, 4, 5, 6), **options),
    "resnet12": lambda **options: backbones.resnet12((32, 32, 3), filters=(3, 4, 5, 6), dropblock_ramp=1, **options),
    "wrapped": lambda seed=0: backbones.wrap(
        keras.Sequential(
            [keras.Input((16, 16, 3)), keras.layers.Conv2D(4, 3, use_bias=False), backbones.FusedBatchNormalization()]
        )
    ),
}
every = pytest.mark.parametrize("name", SMALL)


def pixels(model, batch=4, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (batch, *model.input_shape[1:]), dtype=np.uint8)


@pytest.fixture
def policy():
    """Sets a dtype policy for one test."""
    before = keras.config.dtype_policy()
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy(before)


def test_by_name_lists_the_three():
    assert backbones.by_name == {
        "conv4": backbones.conv4, "r2d2": backbones.r2d2, "resnet12": backbones.resnet12
    }  # fmt: skip


@every
def test_uint8_and_float_pixels_give_the_same_float_features(name):
    model = SMALL[name]()
    x = pixels(model)
    features = model(x)
    assert features.dtype == tf.float32 and features.shape == (4, model.output_shape[-1])
    np.testing.assert_array_equal(features, model(x.astype("float32")))
    np.testing.assert_array_equal(features, model(tf.constant(x), training=False))
    assert np.isfinite(features).all() and np.ptp(features, axis=0).max() > 0


@every
def test_saved_model_is_restored_whole(name, tmp_path):
    model = SMALL[name](seed=3)
    x = pixels(model)
    model(x, training=True)  # moves the statistics, the counters and the states of the seeds
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert [variable.shape for variable in again.variables] == [variable.shape for variable in model.variables]
    for one, two in zip(again.variables, model.variables, strict=True):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(again(x), model(x))
    np.testing.assert_array_equal(again(x, training=True), model(x, training=True))  # the same masks


@pytest.mark.parametrize("name", ["r2d2", "resnet12"])
def test_a_checkpoint_repeats_the_masks(name, tmp_path):
    model = SMALL[name](seed=3)
    x = pixels(model)
    model(x, training=True)
    path = tf.train.Checkpoint(model=model).write(str(tmp_path / "checkpoint"))
    expected = [model(x, training=True).numpy() for _ in range(2)]
    assert (expected[0] != expected[1]).any()
    other = SMALL[name](seed=4)
    tf.train.Checkpoint(model=other).read(path).assert_consumed()
    for features in expected:
        np.testing.assert_array_equal(other(x, training=True), features)


@pytest.mark.parametrize("name", ["conv4", "r2d2", "resnet12"])
def test_layers_and_weights_have_explicit_stable_names(name):
    first, second = SMALL[name](), SMALL[name]()
    assert [layer.name for layer in first.layers] == [layer.name for layer in second.layers]
    assert [v.path for v in first.weights] == [v.path for v in second.weights]
    assert first.name == name


@every
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mixed_precision(name, dtype, policy):
    exact = SMALL[name](seed=1)
    policy(f"mixed_{dtype}")
    model = SMALL[name](seed=1)
    model.set_weights(exact.get_weights())
    x = pixels(model)
    features = model(x)
    assert features.dtype == dtype and all(v.dtype == "float32" for v in model.trainable_variables)
    tolerance = 0.02 if dtype == "float16" else 0.1
    expected = exact(x).numpy()
    np.testing.assert_allclose(tf.cast(features, tf.float32), expected, atol=tolerance * np.abs(expected).max())
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.cast(model(x, training=True), tf.float32) ** 2)
    grads = tape.gradient(loss, [v.value for v in model.trainable_variables])
    assert all(grad.dtype == tf.float32 and np.isfinite(grad).all() for grad in grads)


def meta_gradient(model):
    """Loss after a gradient step from the model's weights, and its gradient: MAML's through stateless_call."""
    dtype = model.trainable_variables[0].dtype
    support, query = pixels(model, 4, seed=1), pixels(model, 6, seed=2)
    state = [v.value for v in model.non_trainable_variables]

    def loss(weights, x):
        return tf.reduce_mean(tf.sin(model.stateless_call(weights, state, x, training=True)[0]))

    def compute(start):
        with tf.GradientTape() as outer:
            outer.watch(start)
            with tf.GradientTape() as inner:
                inner.watch(start)
                value = loss(start, support)
            grads = inner.gradient(value, start)
            weights = [w - tf.cast(0.1, dtype) * g for w, g in zip(start, grads, strict=True)]
            final = loss(weights, query)
        return final, outer.gradient(final, start)

    return compute


@pytest.mark.parametrize("name", ["conv4", "wrapped"])
def test_second_order_gradient_agrees_with_finite_differences(name, policy):
    policy("float64")
    model = SMALL[name](seed=5)
    start = [tf.convert_to_tensor(v) for v in model.trainable_variables]
    compute = tf.function(meta_gradient(model))
    rng = np.random.default_rng(0)
    direction = [rng.normal(size=w.shape) for w in start]
    grads = compute(start)[1]
    slope = sum(float(tf.reduce_sum(g * d)) for g, d in zip(grads, direction, strict=True))
    step = 1e-6
    losses = [
        float(compute([w + sign * step * d for w, d in zip(start, direction, strict=True)])[0]) for sign in (1, -1)
    ]
    assert slope == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("name", ["conv4", "r2d2", "resnet12"])
def test_second_order_gradient_in_float32_is_that_of_float64(name, policy):
    options = {"conv4": {}, "r2d2": {"dropout": (0.0, 0.0)}, "resnet12": {"drop_rate": 0.0}}[name]
    results, weights = [], None
    for dtype in ("float64", "float32"):
        policy(dtype)
        model = SMALL[name](seed=6, **options)
        weights = weights or [v.numpy() for v in model.trainable_variables]
        value, grads = meta_gradient(model)([tf.constant(w, dtype) for w in weights])
        results.append([value.numpy(), np.concatenate([tf.reshape(g, [-1]).numpy() for g in grads])])
    np.testing.assert_allclose(results[1][0], results[0][0], rtol=1e-4)
    error = np.linalg.norm(results[1][1] - results[0][1]) / np.linalg.norm(results[0][1])
    assert error < 1e-3


def test_any_keras_application_is_a_backbone(tmp_path):
    network = keras.applications.MobileNetV2(input_shape=(32, 32, 3), alpha=0.35, include_top=False, weights=None)
    model = backbones.wrap(network, normalization=([127.5] * 3, [127.5] * 3))
    x = pixels(model)
    features = model(x)
    assert features.shape == (4, 1280) and features.dtype == tf.float32
    np.testing.assert_array_equal(features, model(x.astype("float32")))
    expected = tf.reduce_mean(network(x / np.float32(127.5) - 1), axis=[1, 2])
    np.testing.assert_allclose(features, expected, atol=1e-6)
    model.save(tmp_path / "wrapped.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "wrapped.keras")(x), features)


def test_wrap_refuses_what_is_no_backbone():
    inputs = keras.Input((8,))
    with pytest.raises(ValueError, match="takes images"):
        backbones.wrap(keras.Model(inputs, keras.layers.Dense(2)(inputs)))
    inputs = keras.Input((8, 8, 3))
    with pytest.raises(ValueError, match="Received: output shape"):
        backbones.wrap(keras.Model(inputs, keras.layers.Reshape((64, 3))(inputs)))


MIRRORED = """
import numpy as np, tensorflow as tf
from tf_unravel import backbones
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
x = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
options = {"seed": 0, "filters": (3, 4, 5, 6), "drop_rate": 0.3, "dropblock_ramp": 1}
with strategy.scope():
    model = backbones.resnet12(**options)
single = backbones.resnet12(**options)
batch = tf.data.Dataset.from_tensors(x[:4]).repeat().batch(2).map(lambda v: tf.reshape(v, (8, 32, 32, 3)))
data = iter(strategy.experimental_distribute_dataset(batch))
step = tf.function(lambda v: strategy.run(lambda images: model(images, training=True), [v]))
for _ in range(2):
    ours = strategy.experimental_local_results(step(next(data)))
    alone = single(x[:4], training=True)
assert len(ours) == 2
for features in ours:  # each replica has the images, masks and statistics that one device has
    np.testing.assert_allclose(features, alone, rtol=1e-3, atol=1e-4)
for one, two in zip(model.variables, single.variables):
    np.testing.assert_allclose(one.numpy(), two.numpy(), rtol=1e-4, atol=1e-5, err_msg=one.path)
print("agreed")
"""


def test_two_replicas_count_and_draw_as_one_device():
    result = subprocess.run([sys.executable, "-c", MIRRORED], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0 and "agreed" in result.stdout, result.stderr[-2000:]
