"""Run folders with made-up measurements, for what reads them."""

import json
import pathlib

from tf_unravel.reproduction.jobs import measurements
from tf_unravel.reproduction.jobs.scales import Scale
from tf_unravel.reproduction.jobs.workspace import Workspace

SCALE = Scale(
    name="fake", about="made up", datasets={"toy": "mini-ImageNet"}, tasks=4, adapted_tasks=4, pairs=4,
    networks={"r2d2": "R2-D2", "resnet12": "conv4-64", "conv4": "conv4-32"}, swept_networks=("r2d2",), timing_rounds=3,
    runs={
        "classical@r2d2": ("run/demo_classical.gin",),
        "feature_clustering@r2d2": ("run/demo_feature_clustering.gin",),
        "hyperplane_variation@r2d2": ("run/demo_hyperplane_variation.gin",),
        "r2d2@r2d2": ("run/tiny32_r2d2.gin",),
    },
)


def workspace(folder: pathlib.Path) -> Workspace:
    return Workspace(folder, SCALE)


def finish(run_dir: pathlib.Path, steps: int = 10, seconds: float = 60.0) -> None:
    """Makes a folder look like that of a finished training."""
    run_dir.mkdir(parents=True, exist_ok=True)
    training = {"step": steps, "total_steps": steps, "best_step": steps, "seconds": seconds}
    (run_dir / "results.json").write_text(json.dumps({"training": training}))


def put(run_dir: pathlib.Path, wanted: measurements.Measurement, **values) -> None:
    """Writes a measurement as `take` does, with values such as accuracy=[...]."""
    if not (run_dir / "results.json").exists():
        finish(run_dir)
    taken = {"values": values, "unit": "tasks", "protocol": "inductive (running statistics)", "fingerprint": "f",
             "seed": 0, "seconds": 30.0, "checkpoint_step": 10}
    measurements._write(measurements.RunFolder(run_dir), wanted, taken)
