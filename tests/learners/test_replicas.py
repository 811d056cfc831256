"""One device or many: the same batches, the same weights, for every learner."""

import json
import os
import subprocess
import sys

import pytest

EACH_KIND = ["feature_clustering", "maml"]
THEIR_VARIANTS = [
    "pairs", "hyperplane_variation", "episodic", "episodic_two_passes", "first_order_maml", "reptile",
    "weight_clustering", "classical_with_dropout", "episodic_with_dropout", "maml_with_dropout", "reptile_with_dropout",
]  # fmt: skip
CASES = [
    *((2, name) for name in EACH_KIND),
    *(pytest.param(2, name, marks=pytest.mark.long) for name in THEIR_VARIANTS),
    *(pytest.param(4, name, marks=pytest.mark.long) for name in (*EACH_KIND, "episodic", "weight_clustering")),
]


@pytest.mark.parametrize(("devices", "learner"), CASES)
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
        # Tasks are alike: the mean of the replicas' own pulls would be only 6e-5 off the pull of all.
        rel = 1e-5 if name == "pull" else 1e-4
        assert found["many"][name] == pytest.approx(value, rel=rel, abs=1e-5)


@pytest.mark.long
def test_replicas_weigh_a_short_last_batch_as_one_device_does():
    """35 images or 7 tasks: two replicas get unequal shares of the last batch, or one gets nothing."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.learners.evaluated"],
        capture_output=True, text=True, timeout=300, env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    for name, (expected, *others) in json.loads(done.stdout.splitlines()[-1]).items():
        for found in others:
            for metric, value in expected.items():
                assert found[metric] == pytest.approx(value, rel=1e-4), f"{name}: {metric}"
