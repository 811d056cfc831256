"""One device or many: the same batches, the same weights, for every learner."""

import json
import os
import subprocess
import sys

import pytest

LEARNERS = [
    "feature_clustering", "pairs", "hyperplane_variation", "episodic", "episodic_two_passes", "maml",
    "first_order_maml", "reptile", "weight_clustering",
]  # fmt: skip
ON_TWO, ON_FOUR = [(2, name) for name in LEARNERS], [(4, name) for name in LEARNERS[::4]]


@pytest.mark.parametrize(("devices", "learner"), ON_TWO + ON_FOUR)
def test_replicas_do_what_one_device_does(devices, learner):
    done = subprocess.run(
        [sys.executable, "-m", "tests.learners.replicas", str(devices), learner],
        capture_output=True, text=True, timeout=300, env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["moved"] > 1e-4
    assert found["distance"] < 2e-4
    for name, value in found["one"].items():
        assert found["many"][name] == pytest.approx(value, rel=1e-4, abs=1e-5)
