"""The README's table: means and gains by hand, and what is published beside them."""

import math

import pytest

from tests.reproduction.fakes import put
from tf_unravel.reproduction.exhibits.summary import summary
from tf_unravel.reproduction.jobs.measurements import Accuracy
from tf_unravel.reproduction.jobs.scales import Scale
from tf_unravel.reproduction.jobs.workspace import Workspace

SCALE = Scale(
    name="fake", about="made up", datasets={"toy": "CIFAR-FS"}, home="toy", tasks=4,
    networks={"r2d2": "R2-D2", "resnet12": "conv4-64", "conv4": "conv4-32"},
    runs={"classical@resnet12": ("run/demo_classical.gin",),
          "feature_clustering@resnet12": ("run/demo_feature_clustering.gin",),
          "r2d2@resnet12": ("run/tiny32_r2d2.gin",)},
    seeds_of={"r2d2@*": (0,)},
)
SEEDS = (0, 1, 2)


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return Workspace(tmp_path, SCALE)


def measured(workspace: Workspace, method: str, seed: int, head: str, values: list[float]) -> None:
    run_dir = workspace.run_dir(SCALE.run("CIFAR-FS", method, "resnet12", seed))
    for shots in (1, 5):
        put(run_dir, Accuracy(head, shots, 4), accuracy=values)


def test_every_run_that_the_scale_has_is_wanted():
    wanted = [(run.training, run.seed, each.head, each.shots) for run, each in summary(SCALE, SEEDS).wanted()]
    trainings = {("classical@resnet12", "svm"): SEEDS, ("feature_clustering@resnet12", "svm"): SEEDS,
                 ("r2d2@resnet12", "own"): (0,)}
    assert sorted(wanted) == sorted((training, seed, head, shots) for (training, head), seeds in trainings.items()
                                    for seed in seeds for shots in (1, 5))


def test_means_and_gains_by_hand(workspace):
    """Gains of 1, 2 and 6 points: mean 3, deviation sqrt(7), t_0.975 of two degrees of freedom 4.302653."""
    for seed, gain in zip(SEEDS, (0.01, 0.02, 0.06), strict=True):
        measured(workspace, "classical", seed, "svm", [0.4, 0.6, 0.4, 0.6])
        measured(workspace, "feature_clustering", seed, "svm", [0.4 + gain, 0.6 + gain, 0.4 + gain, 0.6 + gain])
    measured(workspace, "r2d2", 0, "own", [0.5, 0.7, 0.5, 0.7])
    grid, note = summary(SCALE, SEEDS).blocks(workspace)
    half = 4.302653 * math.sqrt(7) / math.sqrt(3)
    rows = {row[0]: list(row[1:]) for row in grid.rows}
    assert rows == {
        "classical": ["50.00", "50.00", "–", "–", "3", "69.5 / 85.7"],
        "R_FC 0.05 (whole batch, as printed)": ["53.00", "53.00", *[f"+3.00 ± {half:.2f}"] * 2, "3",
                                                "72.3 / 86.3 (+2.8 / +0.6)"],
        "R2-D2": ["60.00", "60.00", "+10.00", "+10.00", "1", "60.0 / 76.1 with conv4-64"],
    }
    assert "4 tasks, 15 queries per class" in note.text and "seeds 0, 1, 2" in note.text


def test_two_trainings_have_no_interval_and_none_no_row(workspace):
    for seed in (0, 1):
        measured(workspace, "classical", seed, "svm", [0.4, 0.6, 0.4, 0.6])
        measured(workspace, "feature_clustering", seed, "svm", [0.5, 0.7, 0.5, 0.7])
    grid, _ = summary(SCALE, SEEDS).blocks(workspace)
    assert [row[3] for row in grid.rows] == ["–", "+10.00"] and [row[5] for row in grid.rows] == ["2", "2"]


def test_nothing_measured_and_no_such_training(workspace):
    assert summary(SCALE, SEEDS).blocks(workspace) == []
    assert summary(Scale(name="none", about="", datasets={}, networks={}, runs={}), SEEDS).empty
