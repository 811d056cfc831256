"""Class names of earlier runs, as the file system gave them: composed or decomposed, they are the same names."""

import json
import unicodedata

import numpy as np
import pytest

from tf_unravel import data
from tf_unravel.runs.config import ConfigError
from tf_unravel.runs.folder import RunFolder


@pytest.mark.parametrize("key", ["random_split", "dealt"])  # the second is what earlier versions wrote
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_recorded_split_counts_in_either_form(tmp_path, form, key):
    names = {"train": ["café", "tea"], "val": ["über"], "test": ["zoë"]}
    recorded = {part: [unicodedata.normalize(form, name) for name in each] for part, each in names.items()}
    (tmp_path / "environment.json").write_text(json.dumps({key: recorded}))
    for part, classes in names.items():
        images, ids = np.zeros((len(classes), 4, 4, 3), np.uint8), np.arange(len(classes))
        RunFolder(tmp_path).check_random_split(part, data.ClassImages(images, ids, tuple(classes), random_split=names))
    other = data.ClassImages(images, ids, ("café",), random_split={**names, "test": ["café"]})
    with pytest.raises(ConfigError, match="'café' would come to the test split"):
        RunFolder(tmp_path).check_random_split("test", other)
