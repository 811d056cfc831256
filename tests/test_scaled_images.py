"""Images that are not in 0-255: warned of wherever arrays can be looked at, and nothing else is."""

import warnings

import keras
import numpy as np
import pytest

import tf_unravel as tu
from tests.learners.problems import small_network

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
LABELS = np.repeat(np.arange(3), 4)
KINDS = {
    "0..1": (IMAGES.astype(np.float32) / 255, "multiply by 255.*floats from 0 to 1"),
    "0..1 in float64": (IMAGES / 255, "multiply by 255"),
    "0..1 in float16": ((IMAGES / 255).astype(np.float16), "multiply by 255"),
    "-1..1": (IMAGES.astype(np.float32) / 127.5 - 1, "as they were before that.*floats from -1 to 1"),
    "standardised": ((IMAGES - np.float32(120)) / 60, "as they were before that"),
    "uint8": (IMAGES, None),
    "floats": (IMAGES.astype(np.float32), None),
    "resized floats": (IMAGES.astype(np.float32) * 1.02 - 3.2, None),
    "dark uint8": (IMAGES // 128, None),
    "dark floats": ((IMAGES // 128).astype(np.float32), None),
    "black": (np.zeros_like(IMAGES, np.float32), None),
}


@pytest.fixture(scope="module")
def learner():
    made = tu.learners.Classical(small_network(filters=4), 3)
    made.compile(optimizer="sgd")
    return made


TAKES = {
    "backbone": lambda learner, x: learner.backbone(x),
    "learner": lambda learner, x: learner(x),
    "fit": lambda learner, x: learner.fit(x, LABELS, batch_size=6, verbose=0),
    "fit by name": lambda learner, x: learner.fit(x=x, y=LABELS, batch_size=6, verbose=0),
    "evaluate": lambda learner, x: learner.evaluate(x, LABELS, batch_size=6, verbose=0),
    "predict": lambda learner, x: learner.predict(x, batch_size=6, verbose=0),
    "extract_features": lambda learner, x: tu.evaluation.extract_features(learner.backbone, x),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("takes", TAKES)
def test_scaled_images_are_warned_of(learner, takes, kind):
    images, message = KINDS[kind]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        TAKES[takes](learner, images)
    said = [str(each.message) for each in caught if "takes images in 0-255" in str(each.message)]
    assert len(said) == (message is not None)
    if message:
        with pytest.warns(UserWarning, match=message):
            TAKES[takes](learner, images)


def test_a_network_for_images_in_0_to_1_takes_them():
    inner = keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Conv2D(4, 3)])
    backbone = tu.backbones.wrap(inner, normalization=([0.5], [0.25]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backbone(KINDS["0..1"][0])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "uint8" not in kind])
def test_float_images_of_a_split_are_refused_with_their_range(kind):
    images, _ = KINDS[kind]
    message = f"images: images must be a uint8 NumPy array.*Received: {images.dtype} from {images.min():g} to "
    with pytest.raises(ValueError, match=message) as caught:
        tu.data.ClassImages(images, LABELS, ("a", "b", "c"))
    assert ("multiply by 255" in str(caught.value)) == ("0..1" in kind or kind in ("dark floats", "black"))
