"""Scales: every training of every scale is a run that can be planned, and names are one to one."""

import dataclasses

import pytest

from tf_unravel import runs
from tf_unravel.reproduction.jobs import jobs, scales
from tf_unravel.reproduction.jobs.scales import RunName, Scale
from tf_unravel.reproduction.report import report
from tf_unravel.runs import config

TRAININGS = [(scale, training) for scale in scales.SCALES for training in scales.load(scale).runs]


@pytest.mark.parametrize(("name", "training"), TRAININGS)
def test_every_training_of_every_scale_is_a_plan(name, training):
    scale = scales.load(name)
    for dataset, published in scale.datasets.items():
        run = dataclasses.replace(scale, seeds_of={}).run(published, *training.split("@"), seed=3)
        files, bindings = scale.configuration(run)
        configuration = runs.parse(files, bindings)
        assert runs.plan(configuration).seed == 3
        assert dataset == run.dataset
        if run.coefficient is not None:
            assert f" = {run.coefficient!r}" in configuration.text


def test_all_scales_train_the_extractors_of_the_paper():
    keys = {name: set(scales.load(name).runs) for name in scales.SCALES}
    assert keys["paper"] == keys["desk"] and keys["smoke"] >= keys["paper"] and keys["cifar_fs"] >= keys["paper"]


def test_seeds_of_a_training_are_limited_by_the_first_pattern_that_matches():
    scale = scales.load("cifar_fs")
    assert scale.run("CIFAR-FS", "classical", "r2d2", 1) is None and scale.run("CIFAR-FS", "classical", "r2d2", 0)
    assert scale.run("CIFAR-FS", "classical", "few60", 9) and scale.run("CIFAR-FS", "classical", "few30", 9) is None


def test_the_queue_puts_first_what_matters_most():
    scale = scales.load("cifar_fs")
    plan = jobs.plan(report.exhibits(scale, tuple(scale.seeds)), scale)
    names = [str(job) for job in plan]
    assert len(set(names)) == len(names)
    order = ["@few60/seed-100", "@resnet12/seed-0", "@few60/seed-0", "maml_1@conv4", "@r2d2/", "omniglot/", "timing@"]
    first = [next(i for i, name in enumerate(names) if part in name) for part in order]
    assert first == sorted(first)
    assert all(scale.place(job.run) < len(scale.queue) for job in plan if isinstance(job, jobs.RunJob))


def test_a_run_is_called_by_its_coefficient_which_the_gin_file_gives():
    scale = scales.load("paper")
    assert scale.run("mini-ImageNet", "hyperplane_variation", "resnet12", 0).coefficient == 0.1
    assert scale.run("CIFAR-FS", "hyperplane_variation", "resnet12", 0).coefficient == 0.05
    assert str(scale.run("CIFAR-FS", "feature_clustering", "r2d2", 1)) == "cifar_fs/feature_clustering-0.05@r2d2/seed-1"


def test_another_coefficient_is_another_run_and_reaches_its_configuration():
    scale = scales.load("desk")
    run = scale.run("mini-ImageNet", "feature_clustering", "resnet12", 0, coefficient=0.1)
    assert run != scale.run("mini-ImageNet", "feature_clustering", "resnet12", 0)
    assert "FeatureClustering.coefficient = 0.1" in runs.parse(*scale.configuration(run)).text


@pytest.mark.parametrize(("name", "method", "network", "penalty"), [
    ("paper", "feature_clustering", "r2d2", "R_FC 0.05 (whole batch, as printed)"),
    ("desk", "feature_clustering", "r2d2", "R_FC 0.05 (by pairs)"),
    ("desk", "hyperplane_variation", "resnet12", "R_HV 0.05 (as printed)"),
    ("paper", "weight_clustering", "conv4", "weight clustering 5e-05 (summed loss)"),
    ("desk", "weight_clustering", "conv4", "weight clustering 5e-05 (mean loss)"),
    ("desk", "reptile", "conv4", ""),
])
def test_a_coefficient_comes_with_its_form(name, method, network, penalty):
    scale = scales.load(name)
    assert scale.penalty(scale.run("mini-ImageNet", method, network, 0)) == penalty


def test_a_form_follows_the_bindings(tmp_path):
    path = tmp_path / "mine.gin"
    path.write_text("include 'paper/smoke.gin'\nScale.bindings = ('HyperplaneVariation.squared = True',)\n")
    scale = scales.load(str(path))
    assert scale.form(scale.run("CIFAR-FS", "hyperplane_variation", "r2d2", 0)) == "squared"


@pytest.mark.parametrize("name", scales.SCALES)
def test_one_batch_norm_protocol_in_table5(name):
    """Transductive, as the Reptile row that the paper prints; Table 9 and Figure 3 are of the same trainings."""
    scale = scales.load(name)
    (table5,) = report.exhibits(scale, (0,), ("table5",))
    wanted = {(run.training, each.head, each.bindings): run for run, each in table5.wanted()}
    protocols = {}
    for (training, head, bindings), run in wanted.items():
        files, of_run = scale.configuration(run)
        plan = runs.plan(runs.parse(files, [*of_run, *bindings]))
        learner = plan.build(config.DataFacts((16, 16, 3), 6, ((0.0,) * 3, (1.0,) * 3)))
        protocols[training] = config.heads_named([head], learner)[head].batchnorm.name
    assert set(protocols.values()) == {"transductive"}, protocols


def test_trainings_of_one_content_are_one_run():
    scale = scales.load("desk")
    assert scale.run("mini-ImageNet", "fomaml_5", "conv4", 0) == scale.run("mini-ImageNet", "fomaml_1", "conv4", 0)
    assert scale.run("mini-ImageNet", "maml_5", "conv4", 0) != scale.run("mini-ImageNet", "maml_1", "conv4", 0)


def test_what_a_scale_has_not_is_none():
    scale = scales.load("desk")
    assert scale.run("CIFAR-FS", "classical", "r2d2", 0) is None
    assert scale.run("mini-ImageNet", "protonet", "r2d2", 0) is None


def test_names_are_folders():
    assert str(RunName("glyphs", "classical@conv4", None, 2)) == "glyphs/classical@conv4/seed-2"
    assert str(RunName("glyphs", "weight_clustering@conv4", 5e-5, 0)) == "glyphs/weight_clustering-5e-05@conv4/seed-0"


def test_an_unknown_scale_is_one_clear_line():
    with pytest.raises(runs.ConfigError, match=r"--scale is one of cifar_fs, paper, desk, smoke.*Received: 'dsk'"):
        scales.load("dsk")


def test_a_scale_of_ones_own_is_a_gin_file(tmp_path):
    path = tmp_path / "mine.gin"
    path.write_text("include 'paper/smoke.gin'\nScale.name = 'mine'\nScale.tasks = 7\n")
    scale = scales.load(str(path))
    assert isinstance(scale, Scale) and scale.name == "mine" and scale.tasks == 7


def test_a_scale_that_lacks_something_says_what(tmp_path):
    path = tmp_path / "mine.gin"
    path.write_text("Scale.name = 'mine'\n")
    with pytest.raises(runs.ConfigError, match="datasets"):
        scales.load(str(path))


@pytest.mark.parametrize("line", [
    "Scale.fine_tune = ('FineTune.learning_rate = 0.1',)", "Scale.fine_tune = ('FineTune.optimizer = @heads.Adam()',)",
    "Scale.fine_tune_rates = ()",
])
def test_a_scale_that_sets_the_rate_elsewhere_is_refused(tmp_path, line):
    path = tmp_path / "mine.gin"
    path.write_text(f"include 'paper/smoke.gin'\n{line}\n")
    with pytest.raises(runs.ConfigError, match=r"^--scale .*mine.gin: the rate of the MAML columns.*Received: [^\n]*$"):
        scales.load(str(path))
