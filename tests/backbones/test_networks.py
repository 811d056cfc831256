"""The three networks: published sizes, initial weights, and their function against NumPy."""

import numpy as np
import pytest

from tests.backbones.references import batch_norm, conv, leaky_relu, max_pool, randomize
from tf_unravel.backbones import DropBlock, FusedBatchNormalization, conv4, r2d2, resnet12

MAML = {"filters": 32, "use_bias": True, "batch_norm_scale": False, "batch_norm_epsilon": 1e-3}
REPTILE = {"filters": 32, "use_bias": True, "downsampling": "pool_same", "batch_norm_epsilon": 1e-3}
REPTILE_OMNIGLOT = {"use_bias": True, "downsampling": "stride", "batch_norm_epsilon": 1e-3}


def parameters(model, ways=0):
    count = sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
    return count + (model.output_shape[-1] + 1) * ways if ways else count


@pytest.mark.parametrize(
    ("build", "options", "size", "features", "count", "ways"),
    [
        (conv4, {}, 84, 1600, 112_832, 0),
        (conv4, {}, 32, 256, 112_832, 0),
        (conv4, MAML, 84, 800, 32_773, 5),
        (conv4, REPTILE, 84, 1152, 34_661, 5),
        (conv4, {**REPTILE_OMNIGLOT, "input_shape": (28, 28, 1)}, 28, 256, 113_221, 5),
        (r2d2, {}, 84, 51200, 2_605_056, 0),
        (r2d2, {}, 32, 8192, 2_605_056, 0),
        (resnet12, {}, 84, 16000, 12_424_320, 0),
        (resnet12, {}, 32, 2560, 12_424_320, 0),
        (resnet12, {"average_pool": True}, 84, 640, 12_424_320, 0),
    ],
)
def test_published_sizes(build, options, size, features, count, ways):
    """Published counts of MAML and Reptile include their 5-way classifier: `ways` adds it."""
    model = build(**{"input_shape": (size, size, 3), **options})
    assert model.output_shape == (None, features)
    assert parameters(model, ways) == count


def test_resnet12_has_metaoptnets_drop_sizes():
    for size, block_size in ((84, 5), (32, 2)):
        blocks = [layer for layer in resnet12((size, size, 3)).layers if isinstance(layer, DropBlock)]
        assert [block.block_size for block in blocks] == [block_size] * 2
        assert [block.name for block in blocks] == ["block3_dropblock", "block4_dropblock"]
        assert all(block.rate == 0.1 and block.ramp == 40000 for block in blocks)


@pytest.mark.parametrize("build", [conv4, r2d2, resnet12])
def test_batch_norm_is_pytorchs(build):
    norms = [layer for layer in build().layers if isinstance(layer, FusedBatchNormalization)]
    assert len(norms) == (16 if build is resnet12 else 4)
    assert all(norm.epsilon == 1e-5 and norm.momentum == 0.9 for norm in norms)


@pytest.mark.parametrize(("build", "layers"), [(conv4, 4), (resnet12, 16)])
def test_kernels_are_he_normal_over_the_fan_out(build, layers):
    kernels = [v.numpy() for v in build(seed=0).trainable_variables if v.path.endswith("kernel")]
    assert len(kernels) == layers
    for kernel in kernels:
        deviation = np.sqrt(2.0 / (kernel.shape[0] * kernel.shape[1] * kernel.shape[3]))
        noise = 4 / np.sqrt(kernel.size)
        assert kernel.std() == pytest.approx(deviation, rel=noise)
        assert abs(kernel.mean()) < noise * deviation
        assert np.abs(kernel).max() > 2.5 * deviation  # not truncated


def test_r2d2_starts_as_pytorch_does():
    for variable in r2d2(seed=0).trainable_variables:
        value = variable.numpy()
        if variable.path.endswith(("kernel", "bias")):
            block = int(variable.path.split("_")[0][-1])
            limit = 1 / np.sqrt(9 * (3, 96, 192, 384)[block - 1])
            assert 0.93 * limit < np.abs(value).max() <= 1.000001 * limit
            assert value.std() == pytest.approx(limit / np.sqrt(3), rel=0.15)
        else:
            np.testing.assert_array_equal(value, float(variable.path.endswith("gamma")))


@pytest.mark.parametrize("build", [conv4, r2d2, resnet12])
def test_seed_determines_every_weight_and_each_differs(build):
    first, again, other = (build((16, 16, 3), seed=seed).get_weights() for seed in (1, 1, 2))
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert any((one != two).any() for one, two in zip(first, other, strict=True))
    random = [weight.ravel()[:50].tobytes() for weight in first if weight.ndim == 4]
    assert len(set(random)) == len(random)


def images(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("downsampling", ["pool", "pool_same"])
def test_conv4_is_its_definition(downsampling):
    model = conv4((19, 17, 3), filters=2, normalization=([120, 110, 100], [60, 50, 40]), downsampling=downsampling)
    w = randomize(model)
    raw = images((3, 19, 17, 3))
    x = (raw - np.array([120, 110, 100])) / [60, 50, 40]
    for block in range(1, 5):
        x = conv(x, w[f"block{block}_conv/kernel"])
        x = batch_norm(x, w[f"block{block}_norm/gamma"], w[f"block{block}_norm/beta"])
        x = max_pool(leaky_relu(x), keep_odd=downsampling == "pool_same")  # the order of the papers
    np.testing.assert_allclose(model(raw, training=True), x.reshape(3, -1), rtol=1e-3, atol=1e-4)


def test_r2d2_is_its_definition():
    model = r2d2((16, 16, 3), filters=(2, 3, 4, 5), dropout=(0.0, 0.0))
    w = randomize(model)
    raw = images((4, 16, 16, 3))
    x, features = raw / 127.5 - 1, []
    for block in range(1, 5):
        norm = f"block{block}_norm"
        x = conv(x, w[f"block{block}_conv/kernel"]) + w[f"{norm}/bias"]
        x = max_pool(batch_norm(x, w[f"{norm}/gamma"], w[f"{norm}/beta"]))
        x = leaky_relu(x, 0.1) if block < 4 else x
        features.append(x.reshape(4, -1))
    np.testing.assert_allclose(model(raw, training=True), np.hstack(features[2:]), rtol=1e-3, atol=1e-4)


def test_resnet12_is_its_definition():
    model = resnet12((16, 16, 3), filters=(2, 3, 4, 5), drop_rate=0.0)
    w = randomize(model)
    raw = images((4, 16, 16, 3))
    x = raw / 127.5 - 1

    def conv_norm(x, name):
        return batch_norm(conv(x, w[f"{name}/kernel"]), w[f"{name}_norm/gamma"], w[f"{name}_norm/beta"])

    for block in range(1, 5):
        shortcut = conv_norm(x, f"block{block}_shortcut")
        x = leaky_relu(conv_norm(x, f"block{block}_conv1"), 0.1)
        x = leaky_relu(conv_norm(x, f"block{block}_conv2"), 0.1)
        x = max_pool(leaky_relu(conv_norm(x, f"block{block}_conv3") + shortcut, 0.1))
    np.testing.assert_allclose(model(raw, training=True), x.reshape(4, -1), rtol=2e-3, atol=1e-3)


def test_r2d2_drops_where_metaoptnet_does():
    model = r2d2(seed=0)
    rates = {layer.name: layer.rate for layer in model.layers if "dropout" in layer.name}
    assert rates == {"block3_dropout": 0.1, "block4_dropout": 0.3}
    features = model(images((8, 32, 32, 3)), training=True).numpy()
    early, late = features[:, :6144], features[:, 6144:]  # [8, 384 * 16], [8, 512 * 4]
    assert (early == 0).mean() == pytest.approx(0.1, abs=0.01)
    assert (late == 0).mean() == pytest.approx(0.3, abs=0.02)
    assert (early < 0).sum() * 3 < early.size < early.size * (1 + (late < -1.5).mean())  # no LeakyReLU on the last


def test_resnet12_drops_elements_in_blocks_1_and_2():
    rates = {layer.name: layer.rate for layer in resnet12().layers if "dropout" in layer.name}
    assert rates == {"block1_dropout": 0.1, "block2_dropout": 0.1}


@pytest.mark.parametrize("build", [conv4, r2d2, resnet12])
def test_images_too_small(build):
    with pytest.raises(ValueError, match=r"at least 16 x 16 pixels. Received: input_shape=\(15, 84, 3\)"):
        build((15, 84, 3))


def test_bad_options():
    with pytest.raises(ValueError, match="Received: downsampling='pools'"):
        conv4(downsampling="pools")
    with pytest.raises(ValueError, match="four blocks"):
        r2d2(filters=(1, 2))
    with pytest.raises(ValueError, match="four blocks"):
        resnet12(filters=(1, 2))
    with pytest.raises(ValueError, match="4 x 4 feature map"):
        resnet12(dropblock_size=5)
    with pytest.raises(ValueError, match="2 channels, the images have 3"):
        conv4(normalization=([1, 2], [1, 2]))
    with pytest.raises(ValueError, match="positive standard deviation"):
        conv4(normalization=([1, 2, 3], [1, 0, 1]))


def test_kernel_initializer_by_name():
    kernel = conv4(kernel_initializer="glorot_uniform", seed=0).get_layer("block2_conv").kernel.numpy()
    limit = np.sqrt(6 / (9 * 128))
    assert 0.99 * limit < np.abs(kernel).max() <= limit
