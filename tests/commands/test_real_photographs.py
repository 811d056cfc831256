"""Two commands on photographs of classes never seen: five per class, a network pretrained on ImageNet, no training.

TF_UNRAVEL_TEST_DATA is a folder with `efficientnet_lite0_features.keras`, which has ImageNet weights, and
`caltech101_84x84_40.tar.gz`, 85 classes of Caltech-101 with 40 photographs each.
"""

import csv
import json
import os
import pathlib
import shutil
import tarfile

import numpy as np
import pytest

from tf_unravel import cli

REAL = pathlib.Path(os.environ.get("TF_UNRAVEL_TEST_DATA", ""))
NETWORK, PHOTOGRAPHS = REAL / "efficientnet_lite0_features.keras", REAL / "caltech101_84x84_40.tar.gz"


@pytest.mark.long
@pytest.mark.skipif(not (NETWORK.is_file() and PHOTOGRAPHS.is_file()), reason="TF_UNRAVEL_TEST_DATA")
def test_two_commands_recognise_classes_never_seen(tmp_path, monkeypatch):
    monkeypatch.setenv("TF_UNRAVEL_CACHE", str(tmp_path / "cache"))
    with tarfile.open(PHOTOGRAPHS) as archive:
        archive.extractall(tmp_path, filter="data")
    images, model = tmp_path / "caltech101_84x84_40", tmp_path / "model"
    classes = sorted(path for path in images.iterdir() if path.is_dir())
    for folder in np.random.default_rng(0).choice(classes, 5, replace=False):
        for number, file in enumerate(sorted(pathlib.Path(folder).iterdir())):
            place = tmp_path / ("support" if number < 5 else "queries") / file.parent.name
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place)
    assert cli.main(["export", f"--backbone={NETWORK}", "--normalization=127,128", "--head=ridge",
                     f"--out={model}"]) == 0
    assert cli.main(["classify", f"--model={model}", f"--support={tmp_path / 'support'}",
                     f"--query={tmp_path / 'queries'}", f"--out={tmp_path / 'answers'}"]) == 0
    with open(tmp_path / "answers" / "classification.csv", encoding="utf-8", newline="") as file:
        right = [row["class"] == pathlib.Path(row["file"]).parent.name for row in csv.DictReader(file)]
    assert len(right) == 175 and np.mean(right) >= 0.97
    assert cli.main(["evaluate", f"--model={model}", f"--data_root={images}", "--ways=5", "--shots=1,5",
                     "--tasks=1000", f"--out={tmp_path}"]) == 0
    by_shots = {row["shots"]: row["mean"] for row in json.loads((tmp_path / "evaluation.json").read_text())}
    assert by_shots[1] > 0.85 and by_shots[5] >= 0.97
