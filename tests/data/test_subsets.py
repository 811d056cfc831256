"""Smaller training sets: how many, which, and that they are nested."""

import numpy as np
import pytest

from tests.conftest import make_split
from tf_unravel import data

SPLIT = make_split(num_classes=4, per_class=12)


def rows(split) -> set[bytes]:
    return {image.tobytes() for image in split.images}


@pytest.mark.parametrize("count", [1, 5, 12])
def test_every_class_keeps_as_many(count):
    few = data.few_per_class(SPLIT, count)
    assert few.images_per_class.tolist() == [count] * 4 and few.class_names == SPLIT.class_names
    for image, class_id in zip(few.images, few.class_ids, strict=True):
        same = SPLIT.images[SPLIT.class_ids == class_id]
        assert (same == image).all(axis=(1, 2, 3)).any()
    assert len(rows(few)) == 4 * count


def test_draws_are_nested_and_seeded():
    sizes = [rows(data.few_per_class(SPLIT, count)) for count in (2, 5, 9)]
    assert sizes[0] < sizes[1] < sizes[2]
    assert rows(data.few_per_class(SPLIT, 5, seed=1)) != sizes[1]
    np.testing.assert_array_equal(data.few_per_class(SPLIT, 12).images, SPLIT.images)


@pytest.mark.parametrize("count", [0, 13])
def test_more_than_there_are(count):
    with pytest.raises(ValueError, match=rf"images per class must be 1..12.*Received: {count}"):
        data.few_per_class(SPLIT, count)


def test_only_training_data_shrink():
    sizes = {split: data.load("glyphs", split=split, train_images_per_class=3).images_per_class.tolist()
             for split in data.SPLITS}
    assert set(sizes["train"]) == {3} and min(sizes["val"]) > 3 and min(sizes["test"]) > 3
