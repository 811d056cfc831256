"""The published originals beside our trainings: every one has a training, and what is inside by hand."""

import numpy as np
import pytest

from tests.reproduction.fakes import put
from tf_unravel.reproduction.exhibits.originals import ORIGINALS
from tf_unravel.reproduction.jobs import scales
from tf_unravel.reproduction.jobs.measurements import Accuracy
from tf_unravel.reproduction.jobs.workspace import Workspace
from tf_unravel.reproduction.report import report
from tf_unravel.reproduction.report.document import Grid


def test_every_original_has_a_training_at_the_scale_cifar_fs():
    scale = scales.load("cifar_fs")
    (exhibit,) = report.exhibits(scale, (0,), ("originals",))
    measured = {(run.training, each.ways, each.shots, each.queries) for run, each in exhibit.wanted()}
    assert measured == {(each.training, each.ways, each.shots, each.queries) for each in ORIGINALS}
    methods = {(each.method, each.dataset) for each in ORIGINALS}
    assert methods >= {(method, "CIFAR-FS") for method in
                       ("ProtoNet", "R2-D2", "MetaOptNet-SVM", "MAML", "first-order MAML", "Reptile")}
    assert {(method, ways) for method in ("ProtoNet", "MAML", "Reptile") for ways in (5, 20)} == {
        (each.method, each.ways) for each in ORIGINALS if each.dataset == "Omniglot"
    }


@pytest.mark.parametrize(("ours", "inside"), [(58.0, "yes"), (56.0, "no"), (61.5, "no")])
def test_inside_means_within_both_intervals(tmp_path, ours, inside):
    """MAML, 5-way 1-shot: 58.9 with ± 1.9; ours has ± 1.96 * 0.01 / sqrt(100) * 100 = 0.196: together 1.91."""
    scale = scales.load("cifar_fs")
    there = Workspace(tmp_path, scale)
    values = ours / 100 + 0.01 * np.tile([-1.0, 1.0], 50) * np.sqrt(99 / 100)
    accuracy = Accuracy("own", 1, scale.adapted_tasks, (), 5, 1)
    run = scale.run("CIFAR-FS", "maml_1", "conv4", 0)
    put(there.run_dir(run), accuracy, accuracy=values.tolist())
    (exhibit,) = report.exhibits(scale, (0,), ("originals",))
    grid = exhibit.blocks(there)[0]
    assert isinstance(grid, Grid)
    (line,) = (row for row in grid.rows if row[0] == "MAML" and row[4].startswith("Bertinetto"))
    cells = dict(zip(grid.head, line, strict=True))
    assert cells["here, % (95 %)"] == f"{ours:.2f} ± 0.20" and cells["published, %"] == "58.9 ± 1.9"
    assert cells["difference"] == f"{ours - 58.9:+.2f}" and cells["inside"] == inside
    assert cells["commit"] == "–"
    (there.run_dir(run) / "environment.json").write_text('{"starts": [{"commit": "abc1234"}]}')
    assert exhibit.blocks(there)[0].rows[0][-1] == "abc1234"
    assert cells["run"] == str(run) and "1 queries per class" in cells["tasks, protocol"]
