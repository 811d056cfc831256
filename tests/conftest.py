"""Fixtures that several test files share."""

import gc
import os
import pathlib

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
if "PYTEST_XDIST_WORKER" in os.environ:  # more processes than cores: threads of theirs would only wait for each other
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

from tf_unravel.data.class_images import ClassImages

# Files that take longest: whole files are shared out among the processes that run tests, and these begin.
_LONGEST = (
    "test_saved_model", "test_every_learner", "test_config", "test_exported_models", "test_benchmark", "test_maml",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first, so that no process is left alone with one at the end."""
    place = {name: number for number, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def pytest_collection_finish() -> None:
    """Traced graphs are many objects: looking through all of them again and again took a tenth of the suite's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)


def make_split(
    num_classes: int = 6, per_class: int = 30, size: int = 16, seed: int = 0, name: str = "toy"
) -> ClassImages:
    """Classes of noisy colour patches: easy to tell apart, quick to train on."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(40, 216, size=(num_classes, 4, 4, 3)).repeat(size // 4, 1).repeat(size // 4, 2)
    ids = np.repeat(np.arange(num_classes), per_class)
    noise = rng.normal(0, 40, size=(len(ids), size, size, 3))
    images = np.clip(centres[ids] + noise, 0, 255).astype(np.uint8)
    return ClassImages(images, ids, tuple(f"class{i}" for i in range(num_classes)), name)


@pytest.fixture(scope="session")
def toy_split() -> ClassImages:
    """Six classes of thirty 16x16 images."""
    return make_split()


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> pathlib.Path:
    """A folder train|val|test/<class>/<image>.png of small pictures, as a user would have it."""
    from PIL import Image

    root = tmp_path_factory.mktemp("photographs")
    for seed, (split, classes) in enumerate({"train": 6, "val": 5, "test": 5}.items()):
        made = make_split(classes, per_class=24, size=16, seed=seed)
        for i, (image, class_id) in enumerate(zip(made.images, made.class_ids, strict=True)):
            path = root / split / f"{split}{class_id}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return root


@pytest.fixture(scope="module")
def chromium():
    """A browser of `tests.browser`, which a module that wants it imports: it skips where there is none."""
    from tests.browser import launched

    with launched() as browser:
        yield browser
