"""Pretrained backbones: each network of keras.applications sees what its own preprocessing makes of an image."""

import sys

import keras
import numpy as np
import pytest

import tf_unravel as tu
from tf_unravel.backbones.pretrained import applications, preprocessing_of

# One network for each module of keras.applications, the smallest.
ONE_OF_EACH = ("ConvNeXtTiny", "DenseNet121", "EfficientNetB0", "EfficientNetV2B0", "InceptionResNetV2", "InceptionV3",
               "MobileNet", "MobileNetV2", "MobileNetV3Small", "NASNetMobile", "ResNet50", "ResNet50V2", "VGG16",
               "VGG19", "Xception")  # fmt: skip


def images(size: int, count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def small_network(size: int | None = 8) -> keras.Model:
    keras.utils.set_random_seed(0)
    layers = keras.layers
    return keras.Sequential([
        keras.Input((size, size, 3)), layers.Conv2D(4, 3, name="conv1"), layers.BatchNormalization(name="norm1"),
        layers.ReLU(), layers.Conv2D(5, 3, name="conv2"), layers.BatchNormalization(name="norm2"),
    ], name="small")  # fmt: skip


def test_every_module_of_keras_applications_is_covered():
    def of(name):
        return getattr(keras.applications, name).__module__

    assert {of(name) for name in applications()} == {of(name) for name in ONE_OF_EACH}


@pytest.mark.parametrize("name", applications())
def test_pixels_are_preprocessed_as_the_network_wants_them(name):
    build = getattr(keras.applications, name)
    (mean, std), blue_first = preprocessing_of(build)
    pixels = images(4)
    given = pixels[..., ::-1] if blue_first else pixels
    expected = sys.modules[build.__module__].preprocess_input(pixels.astype(np.float32), data_format="channels_last")
    np.testing.assert_allclose((given - np.array(mean)) / std, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["MobileNetV3Small", "MobileNetV2", "ResNet50", "DenseNet121"])
def test_features_are_the_averaged_map_of_the_network(name):
    """One of each kind of preprocessing: inside the network, -1..1, blue first, ImageNet's mean and deviation."""
    backbone = tu.backbones.pretrained(name, weights=None, image_size=64)
    build = getattr(keras.applications, name)
    network = build(include_top=False, weights=None, input_shape=(64, 64, 3))
    network.set_weights(backbone.get_weights())
    pixels = images(64)
    prepared = sys.modules[build.__module__].preprocess_input(pixels.astype(np.float32))
    expected = np.mean(network(prepared), axis=(1, 2))
    np.testing.assert_allclose(backbone(pixels), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_every_network_gives_features_and_can_be_saved(name, tmp_path):
    backbone = tu.backbones.pretrained(name, weights=None, image_size=96)
    backbone.save(tmp_path / "b.keras")
    again = keras.saving.load_model(tmp_path / "b.keras")
    features = backbone(images(96)).numpy()
    assert features.shape == (2, backbone.output_shape[1])
    np.testing.assert_allclose(again(images(96)), features, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("size", "asked", "side"), [(8, None, 8), (None, 40, 40), (8, 12, 12)])
def test_a_keras_file_is_wrapped(size, asked, side, tmp_path):
    network = small_network(size)
    network.save(tmp_path / "net.keras")
    backbone = tu.backbones.pretrained(tmp_path / "net.keras", image_size=asked, normalization=((127.0,), (128.0,)))
    assert backbone.input_shape == (None, side, side, 3)
    pixels = images(side)
    prepared = (pixels.astype(np.float32) - 127) / 128
    expected = prepared
    for layer in network.layers:
        expected = layer(expected)
    np.testing.assert_allclose(backbone(pixels), np.mean(expected, axis=(1, 2)), rtol=1e-5, atol=1e-6)


def test_a_keras_file_that_fits_one_size_says_so(tmp_path):
    layers = keras.layers
    keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(3)]).save(tmp_path / "net.keras")
    with pytest.raises(ValueError, match="net.keras takes images of 8 x 8 pixels alone .*Received: image_size=.9, 9."):
        tu.backbones.pretrained(tmp_path / "net.keras", image_size=9)


def test_a_keras_file_whose_layers_begin_with_an_underscore_can_be_exported(tmp_path):
    """TensorFlow refuses such names of variables, which networks converted from PyTorch have."""
    inputs = keras.Input((8, 8, 3))
    network = keras.Model(inputs, keras.layers.Conv2D(4, 3, name="_conv")(inputs))
    network.save(tmp_path / "net.keras")
    backbone = tu.backbones.pretrained(tmp_path / "net.keras")
    tu.export(backbone, tu.heads.Ridge(), tmp_path / "model")
    pixels = images(8)
    expected = np.mean(network(pixels), axis=(1, 2))
    np.testing.assert_allclose(tu.deployment.load(tmp_path / "model").features(pixels), expected, rtol=1e-5, atol=1e-4)


def test_batch_norm_is_frozen_unless_asked_otherwise_and_so_is_what_comes_before(tmp_path):
    small_network().save(tmp_path / "net.keras")

    def trained(**options):
        return [v.path.rpartition("small/")[2] for v in
                tu.backbones.pretrained(tmp_path / "net.keras", **options).trainable_variables]

    convolutions = ["conv1/kernel", "conv1/bias", "conv2/kernel", "conv2/bias"]
    assert trained() == convolutions
    assert trained(trained_from="conv2") == convolutions[2:]
    assert trained(trained_from="norm1", freeze_batch_norm=False) == [
        "norm1/gamma", "norm1/beta", "conv2/kernel", "conv2/bias", "norm2/gamma", "norm2/beta"]


def test_frozen_layers_stay_as_they_are_in_training(tmp_path, toy_split):
    small_network(16).save(tmp_path / "net.keras")
    backbone = tu.backbones.pretrained(tmp_path / "net.keras", trained_from="conv2")
    learner = tu.learners.Classical(backbone, toy_split.num_classes, tu.regularizers.FeatureClustering(0.05))
    learner.compile(optimizer=keras.optimizers.SGD(0.1))
    before = {v.path: v.numpy() for v in backbone.variables}
    learner.fit(tu.data.class_pairs(toy_split, batch_size=12), epochs=1, steps_per_epoch=2, verbose=0)
    changed = {v.path.rpartition("small/")[2] for v in backbone.variables if not np.array_equal(before[v.path], v)}
    assert changed == {"conv2/kernel", "conv2/bias"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "EfficientNet"}, "hub:PRESET or one of keras.applications: .*Xception. Received: 'EfficientNet'"),
        ({"name": "missing.keras"}, "no such .keras file. Received: missing.keras"),
        ({"name": "VGG16", "weights": "missing.h5"}, "weights are .*Received: 'missing.h5', and no such file"),
        ({"name": "VGG16", "weights": None, "image_size": 16}, "VGG16 cannot be built: Input size must be at least 32"),
        ({"name": "InceptionV3", "weights": None, "image_size": 40}, "InceptionV3 cannot be built: Input size must be"),
        ({"name": "VGG16", "normalization": ((0,), (1,))}, "VGG16 knows its own. Received: normalization="),
    ],
)  # fmt: skip
def test_errors_are_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        tu.backbones.pretrained(**arguments)
    assert "\n" not in str(caught.value)


def test_a_preset_of_kerashub_is_wrapped(tmp_path):
    keras_hub = pytest.importorskip("keras_hub", reason="needs pip install 'tf-unravel[hub]'")
    network = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64], input_conv_kernel_sizes=[7], stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 1], stackwise_num_strides=[1, 2], block_type="basic_block", image_shape=(32, 32, 3),
    )  # fmt: skip
    converter = keras_hub.layers.ResNetImageConverter(image_size=(32, 32), scale=[0.02, 0.01, 0.03], offset=[-1, -2, 3])
    for part in (network, converter):
        part.save_to_preset(tmp_path / "preset")
    backbone = tu.backbones.pretrained(f"hub:{tmp_path / 'preset'}")
    pixels = images(32)
    expected = np.mean(network(pixels * np.float32([0.02, 0.01, 0.03]) + np.float32([-1, -2, 3])), axis=(1, 2))
    np.testing.assert_allclose(backbone(pixels), expected, rtol=1e-4, atol=1e-5)
    assert tu.backbones.pretrained(f"hub:{tmp_path / 'preset'}", image_size=48).input_shape == (None, 48, 48, 3)
    with pytest.raises(ValueError, match="the preset nothing cannot be used: Unknown preset identifier") as caught:
        tu.backbones.pretrained("hub:nothing")
    assert "\n" not in str(caught.value)


def test_without_kerashub_a_preset_says_what_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(ValueError, match="need pip install 'tf-unravel.hub.', on Python 3.11 or later"):
        tu.backbones.pretrained("hub:resnet_18_imagenet")


def test_an_unknown_layer_and_a_damaged_file_are_named(tmp_path):
    small_network().save(tmp_path / "net.keras")
    with pytest.raises(ValueError, match="a layer of small_backbone, from conv1 to norm2. Received: 'block1'"):
        tu.backbones.pretrained(tmp_path / "net.keras", trained_from="block1")
    (tmp_path / "bad.keras").write_bytes(b"PK")
    with pytest.raises(ValueError, match="bad.keras cannot be loaded as a Keras model: ") as caught:
        tu.backbones.pretrained(tmp_path / "bad.keras")
    assert "\n" not in str(caught.value)


def test_a_failed_download_says_where_keras_looks(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))

    def fails(*_, **__):
        raise Exception("URL fetch failure on https://example.org/a/mobilenet_no_top.h5: None -- [Errno -2] Name")

    monkeypatch.setattr(sys.modules[keras.applications.MobileNetV2.__module__].file_utils, "get_file", fails)
    wanted = r"put mobilenet_no_top.h5 into .*models, give weights \(--weights\) a file of them.*Errno -2"
    with pytest.raises(ValueError, match=wanted) as caught:
        tu.backbones.pretrained("MobileNetV2")
    assert "\n" not in str(caught.value) and str(tmp_path / "models") in str(caught.value)


