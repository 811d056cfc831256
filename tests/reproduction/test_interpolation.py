"""When the regularizers help: which trainings are wanted, what is chosen on the validation classes, gains by hand."""

import json

import pytest

from tests.reproduction.fakes import put
from tf_unravel.reproduction.exhibits.interpolation import FORMS, Row, Setting, best_on_validation, interpolation
from tf_unravel.reproduction.jobs import jobs
from tf_unravel.reproduction.jobs.measurements import Accuracy, Separation
from tf_unravel.reproduction.jobs.scales import Scale
from tf_unravel.reproduction.jobs.workspace import Workspace
from tf_unravel.reproduction.report import document, rendering, report

_FC, _HV = "run/demo_feature_clustering.gin", "run/demo_hyperplane_variation.gin"
SCALE = Scale(
    name="fake", about="made up", datasets={"toy": "CIFAR-FS"}, home="toy", tasks=4, pairs=4, grid=(0.05,),
    networks={"r2d2": "R2-D2", "resnet12": "conv4-64", "conv4": "conv4-32"},
    runs={
        **{f"classical@few{size}": ("run/demo_classical.gin", f"load.train_images_per_class = {size}")
           for size in (30, 60)},
        "feature_clustering_batch@few60": (_FC,),
        "feature_clustering_pairs@few60": (_FC, "FeatureClustering.pairs = True"),
        "feature_clustering_pairs@few30": (_FC, "FeatureClustering.pairs = True", "run.epochs = 1"),
        "hyperplane_variation_printed@few60": (_HV,),
        "hyperplane_variation_squared@few60": (_HV, "HyperplaneVariation.squared = True"),
    },
    sizes=(30, 60), grid_seeds=(0, 1, 2), selection_seeds=(100,),
    seeds_of={"*@few60": (0, 1, 2, 100), "*@few30": (0, 1)},
    chosen={"feature_clustering": ("feature_clustering_pairs", 0.05)},
)


def finish(workspace: Workspace, setting: Setting, seed: int, accuracy: float, validation: float = 0.5) -> None:
    (run,) = setting.runs(SCALE, [seed])
    run_dir = workspace.run_dir(run)
    for shots in (1, 5):
        put(run_dir, Accuracy("svm", shots, 4), accuracy=[accuracy] * 3 + [accuracy + 0.04])
    put(run_dir, Separation("test", 4), r_fc=[2.0] * 4, r_hv=[1.0] * 4)
    results = json.loads((run_dir / "results.json").read_text())
    last = {"val/1-shot": validation, "val/5-shot": validation, "at_validation/train_accuracy": 0.9,
            "at_validation/train_cross_entropy": 0.1, "at_validation/regularizer_gradient_share": 0.7}
    results["training"]["validations"] = [last]
    (run_dir / "results.json").write_text(json.dumps(results))


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return Workspace(tmp_path, SCALE)


def test_the_trainings_of_the_exhibit():
    exhibit = interpolation(SCALE, (0,))
    wanted = {str(job) for job in jobs.plan([exhibit], SCALE)}
    assert {name for name in wanted if "few30" in name} == {
        *(f"toy/classical@few30/seed-{seed}" for seed in (0, 1)),
        *(f"toy/feature_clustering_pairs-0.05@few30/seed-{seed}" for seed in (0, 1)),
    }
    at_60 = {name for name in wanted if "few60" in name}
    assert at_60 == {f"toy/{name}@few60/seed-{seed}" for seed in (0, 1, 2, 100)
                     for name in ("classical", *(f"{form}-0.05" for form in FORMS))}


def test_gains_by_hand(workspace):
    classical, pairs = Setting("classical", None, 60), Setting("feature_clustering_pairs", 0.05, 60)
    for seed, gain in enumerate([0.01, 0.02, 0.03]):
        finish(workspace, classical, seed, 0.4)
        finish(workspace, pairs, seed, 0.4 + gain)
    text = "\n\n".join(document.plain(block) for block in interpolation(SCALE, (0,)).blocks(workspace)
                       if isinstance(block, document.Grid))
    (row,) = (line for line in text.splitlines() if "by pairs" in line and "+" in line and "60 " not in line[:4])
    # 1, 2, 3 points: t of 2 degrees of freedom at 0.975 is 4.3027, error 1 / sqrt(3)
    assert row.count("+2.00 ± 2.48") == 2 and "0.700" in row
    drawing = interpolation(SCALE, (0,)).draw(workspace)
    assert len(drawing) == 1 and len(drawing[0].figure.axes) == 2


def row(*validation: float) -> Row:
    return Row({}, {}, 0.0, 0.0, 0.0, 0.0, list(validation))


def test_the_form_is_chosen_on_the_validation_classes():
    rows = {
        Setting("classical", None, 60): row(99.0), Setting(FORMS[0], 0.05, 60): row(50.0, 52.0),
        Setting(FORMS[1], 0.05, 60): row(51.5, 51.0), Setting(FORMS[2], 0.1, 60): row(40.0),
        Setting(FORMS[3], 0.1, 60): row(),
    }
    assert best_on_validation(rows) == {
        "feature_clustering": Setting(FORMS[1], 0.05, 60), "hyperplane_variation": Setting(FORMS[2], 0.1, 60)
    }


def test_nothing_measured_is_said(workspace):
    exhibit = interpolation(SCALE, (0,))
    assert "Not measured yet" in report.exhibit_text(exhibit, workspace)
    assert exhibit.draw(workspace) == [] and rendering.blocks_of(exhibit, workspace)
