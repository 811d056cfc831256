"""Several configurations at once: each run gives what its own says, whatever was parsed, read or deleted meanwhile."""

import copy
import gc
import itertools
import json
from concurrent.futures import ThreadPoolExecutor

import gin
import keras
import numpy as np
import pytest
from PIL import Image

from tf_unravel import data, heads, runs
from tf_unravel.commands.export import export_run
from tf_unravel.files import write_text
from tf_unravel.reproduction.jobs import jobs, scales
from tf_unravel.reproduction.jobs.measurements import Accuracy
from tf_unravel.runs import config
from tf_unravel.runs.config import heads_named

FILES = ["data/image_folder.gin", "backbone/conv4.gin"]
SETTINGS = {
    "run.epochs": (3, 5),
    "run.seed": (1, 2),
    "run.dtype": ("float32", "mixed_bfloat16"),
    "load.image_size": (16, 20),
    "load.resize": ("bilinear", "nearest"),
    "conv4.filters": (2, 4),
    "Episodic.label_smoothing": (0.0, 0.2),
    "Episodic.weight_decay": (1e-4, 1e-2),
    "Episodes.ways": (2, 3),
    "Episodes.shots": (2, 1),
    "Episodes.tasks": (2, 3),
    "sgd.momentum": (0.5, 0.8),
    "sgd.rates": ((0.5,), (0.25,)),
    "Validation.ways": (2, 3),
    "Validation.num_tasks": (10, 20),
    "Ridge.l2": (1.0, 99.0),
    "SVM.c": (0.1, 7.0),
    "FineTune.steps": (1, 9),
}
MEANS = (14, 204)


def draw(root, mean: int):
    """Three classes in each split, of flat images."""
    for split, number in itertools.product(data.SPLITS, range(3)):
        folder = root / split / f"{split}{number}"
        folder.mkdir(parents=True)
        for i in range(3):
            Image.fromarray(np.full((20, 20, 3), mean, np.uint8)).save(folder / f"{i}.png")
    return root


def bound(which: int) -> list[str]:
    return [f"{name} = {values[which]!r}" for name, values in SETTINGS.items()]


def begun(run_dir, configuration: runs.Configuration):
    """A run's folder as it is after the start, before the first step."""
    plan, folder = runs.plan(configuration), runs.RunFolder(run_dir)
    splits = {name: plan.dataset(split=name) for name in ("train", "val")}
    with folder.claimed():
        write_text(folder.config, configuration.text)
        folder.record_start(splits, config.DataFacts.of(splits["train"]), plan.seed, 0, configuration.root)
    return run_dir


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folders of two runs that agree in nothing."""
    place = tmp_path_factory.mktemp("two")
    return [
        begun(place / f"run{which}", runs.parse(
            [*FILES, "learner/r2d2.gin"],
            ["Validation.head = @SVM()", "mine/Ridge.l2 = 55.0", "Episodes.queries = 1", *bound(which)],
            root=draw(place / f"images{which}", MEANS[which])))
        for which in (0, 1)
    ]  # fmt: skip


def given(run: runs.FinishedRun) -> dict:
    """What a run says about itself, each by the way that uses it."""
    plan, learner = run.plan, run.learner
    named = heads_named(["ridge", "svm", "fine_tune", "own"], learner)
    optimizer = plan.build_optimizer(10)
    split = run.split("test")
    rebuilt = plan.build(run.folder.data_facts())
    weights = [rebuilt.backbone.trainable_variables[0], learner.backbone.trainable_variables[0]]
    return {
        "run.epochs": plan.epochs, "run.seed": plan.seed, "run.dtype": plan.dtype,
        "load.image_size": split.image_shape[0], "load.resize": run.configuration.dataset_setting("resize"),
        "conv4.filters": weights[0].shape[-1],
        "Episodic.label_smoothing": rebuilt.label_smoothing, "Episodic.weight_decay": rebuilt.weight_decay,
        "Episodes.ways": plan.batches.ways, "Episodes.shots": plan.batches.shots,
        "Episodes.tasks": plan.batches.tasks,
        "sgd.momentum": optimizer.momentum, "sgd.rates": (float(optimizer.learning_rate),),
        "Validation.ways": plan.validation.ways, "Validation.num_tasks": plan.validation.num_tasks,
        "Ridge.l2": named["ridge"].l2, "SVM.c": named["svm"].c, "FineTune.steps": named["fine_tune"].steps,
        "own": named["own"].l2, "validation": plan.validation.head.c,
        "mean": float(split.images.mean()), "normalization": run.folder.data_facts().normalization[0][0],
        "batch": tuple(next(iter(plan.batches.dataset(split, plan.seed))).support_images.shape),
        "policy": rebuilt.backbone.layers[-2].dtype_policy.name,
        "drawn from the seed": bool((weights[0].numpy() == weights[1].numpy()).all()),
    }  # fmt: skip


def expected(which: int) -> dict:
    own = {name: values[which] for name, values in SETTINGS.items()}
    ways, size = own["Episodes.ways"], own["load.image_size"]
    return {
        **own, "own": own["Ridge.l2"], "validation": own["SVM.c"], "mean": MEANS[which], "normalization": MEANS[which],
        "policy": own["run.dtype"], "drawn from the seed": True,
        "batch": (own["Episodes.tasks"], ways * own["Episodes.shots"], size, size, 3),
    }  # fmt: skip


@pytest.mark.parametrize(("first", "used_before"), [(0, False), (1, True)])
def test_two_open_runs_give_each_its_own(two, first, used_before):
    other = 1 - first
    one = runs.FinishedRun(two[first], checkpoint="initial")
    if used_before:
        assert given(one) == expected(first)
    another = runs.FinishedRun(two[other], checkpoint="initial")
    assert given(another) == expected(other)
    del another
    gc.collect()
    assert given(one) == expected(first)


def test_a_reading_that_changes_a_run_changes_no_other_reading_of_it(two):
    as_it_is = runs.FinishedRun(two[0], checkpoint="initial")
    changed = runs.FinishedRun(two[0], ["Ridge.l2 = 5.0"], "initial", data_root=two[1].parent / "images1")
    assert (heads_named(["ridge"], changed.learner)["ridge"].l2, changed.split("test").images.mean()) == (5.0, MEANS[1])
    assert given(as_it_is) == expected(0)


def _parse_another(run, tmp_path):
    runs.plan(runs.parse(["gin/run/demo_classical.gin"], bound(1)))


def _fail_to_parse(run, tmp_path):
    with pytest.raises(runs.ConfigError):
        runs.parse(["gin/run/demo_classical.gin"], [*bound(1), "Ridge.l3 = 2"])


def _name_a_run_of_a_scale(run, tmp_path):
    scales._coefficient_in.cache_clear()
    assert scales.load("desk").run("mini-ImageNet", "feature_clustering", "r2d2", 0).coefficient == 0.05


def _ask_what_is_left_of_a_job(run, tmp_path):
    scale = scales.load("smoke")
    name = scale.run(scale.home_beside, "r2d2", "r2d2", 0)
    assert jobs.left_of(jobs.RunJob(name, (Accuracy("svm", 1, 4),)), jobs.Workspace(tmp_path, scale))


def _use_gin_oneself(run, tmp_path):
    gin.clear_config()


@pytest.mark.parametrize("meanwhile", [_parse_another, _fail_to_parse, _name_a_run_of_a_scale,
                                       _ask_what_is_left_of_a_job, _use_gin_oneself])  # fmt: skip
def test_what_else_reads_configurations_changes_no_open_run(two, meanwhile, tmp_path):
    run = runs.FinishedRun(two[0], checkpoint="initial")
    meanwhile(run, tmp_path)
    assert given(run) == expected(0)


def test_an_export_says_what_its_own_run_was(two, tmp_path, monkeypatch):
    """The other run is opened between the run's own opening and the card."""
    original = heads_named

    def meanwhile(*arguments):
        runs.FinishedRun(two[1], checkpoint="initial")
        return original(*arguments)

    def export(backbone, head, out, card, prior):
        cards.append(card)
        assert (head.l2, backbone.trainable_variables[0].shape[-1]) == (3.0, SETTINGS["conv4.filters"][0])

    cards: list[dict] = []
    monkeypatch.setattr("tf_unravel.commands.export.heads_named", meanwhile)
    monkeypatch.setattr("tf_unravel.deployment.export", export)
    changes = ["Ridge.l2 = 3.0", "load.root = 'somewhere/else'"]
    export_run(two[0], "ridge", tmp_path / "model", "initial", changes)
    (card,) = cards
    assert card["decoding"]["resize"] == "bilinear" and card["trained"]["dataset"] == "image_folder"
    assert card["trained"]["bindings"] == ["Ridge.l2 = 3.0"] and "Ridge.l2 = 1.0" in card["trained"]["config"]
    assert str(two[0].parent) not in json.dumps(card) and "somewhere" not in json.dumps(card)


def test_a_training_is_the_same_whatever_is_parsed_meanwhile(two, tmp_path, monkeypatch):
    """Another configuration is parsed, planned and built at every start of a part of the training."""
    def trained(run_dir):
        lines = [*bound(0), "run.epochs = 1", "ClassPairs.batch_size = 4", "Validation.every_epochs = 0"]
        configuration = runs.parse([*FILES, "learner/classical.gin"], lines, root=two[0].parent / "images0")
        plan, folder = runs.plan(configuration), runs.RunFolder(run_dir)
        if "meanwhile" in str(run_dir):
            _disturb(monkeypatch, runs.training, "_check_training")
            _disturb(monkeypatch, runs.training.Logs, "text")
            _disturb(monkeypatch, runs.training.Logs, "scalars")
        runs.train(plan, folder, configuration)
        with np.load(folder.checkpoints.newest_first()[0]) as file:
            return folder, {name: file[name] for name in file.files if name != "facts"}

    (alone, weights), (disturbed, others) = trained(tmp_path / "alone"), trained(tmp_path / "meanwhile")
    assert weights and weights.keys() == others.keys()
    assert all((weights[name] == others[name]).all() for name in weights)
    assert alone.operative_config.read_text() == disturbed.operative_config.read_text()
    assert "sgd.momentum = 0.5" in alone.operative_config.read_text()


def _disturb(monkeypatch, owner, name: str) -> None:
    original = getattr(owner, name)

    def disturbed(*arguments, **options):
        other = runs.plan(runs.parse(["gin/run/demo_feature_clustering.gin"], [*bound(1), "sgd.epochs = ()"]))
        other.build_optimizer(10)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, disturbed)


# What a user's own configurables do with gin


@gin.configurable
def depth(layers=1):
    return layers


@gin.configurable
class Nested:
    """A class that gin decorates reads its arguments in its constructor, and calls another configurable by name."""

    def __init__(self, factor=1, function=None):
        self.factor, self.function, self.layers = factor, function, depth()


@gin.configurable
def told(split, nested=None, root=None):
    """Stands for a dataset: says what it was given."""
    return {"root": root, "factor": nested.factor, "layers": nested.layers, "called": nested.function()}


TOLD = [f"{line}" for line in (
    "run.dataset = @told", "told.nested = @Nested()", "Nested.function = @in_a_scope/depth",
    "Nested.factor = %factor", "factor = {0}0", "depth.layers = {0}", "in_a_scope/depth.layers = {0}00")]  # fmt: skip


def test_configurables_of_ones_own_keep_their_configuration():
    plans = [runs.plan(runs.parse(["gin/run/demo_classical.gin"], [line.format(i) for line in TOLD], root=f"/{i}"))
             for i in (2, 3)]  # fmt: skip
    for i, plan in ((2, plans[0]), (3, plans[1]), (2, copy.deepcopy(plans[0]))):
        assert plan.dataset(split="x") == {"root": f"/{i}", "factor": 10 * i, "layers": i, "called": 100 * i}
    assert depth() == 1 and Nested().factor == 1


def test_a_function_that_is_called_long_after_has_its_configuration_still():
    made = [runs.parse([], [line.format(i) for line in TOLD]).table.make(Nested) for i in (2, 3)]
    assert [each.function() for each in made] == [200, 300]


def test_the_bindings_of_ones_own_program_are_left_alone_and_leave_runs_alone(two):
    try:
        gin.parse_config("depth.layers = 7\ntf_unravel.heads.Ridge.l2 = 3.0")
        with gin.config_scope("mine"):
            assert given(runs.FinishedRun(two[0], checkpoint="initial")) == expected(0)
        assert depth() == 7 and gin.query_parameter("Ridge.l2") == 3.0
        assert not gin.config_is_locked()
    finally:
        gin.clear_config()


def test_runs_that_are_used_in_threads_at_once_keep_apart(two):
    opened = [runs.FinishedRun(folder, checkpoint="initial") for folder in two]

    def ask(which: int) -> bool:
        run = opened[which]
        named = heads_named(["ridge"], run.learner)["ridge"].l2
        return (named, run.plan.build_optimizer(10).momentum) == tuple(
            SETTINGS[name][which] for name in ("Ridge.l2", "sgd.momentum"))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, [0, 1] * 100))


def test_two_plans_do_not_share_what_is_made_anew():
    plan = runs.plan(runs.parse(["gin/run/tiny32_r2d2.gin"]))
    assert plan.heads["ridge"]() is not plan.heads["ridge"]()


def test_a_network_of_ones_own_keeps_its_precision_after_a_run_was_opened(two):
    runs.FinishedRun(two[1], checkpoint="initial")
    assert keras.config.dtype_policy().name == "float32"


def test_a_learner_of_no_run_has_no_settings_of_heads(two):
    learner = copy.copy(runs.FinishedRun(two[0], checkpoint="initial").learner.backbone)
    with pytest.raises(runs.ConfigError, match="only a run's learner knows .* Received: a learner"):
        heads_named(["ridge"], learner)


def test_a_head_that_gin_does_not_know_is_made_as_it_is(two, monkeypatch):
    class Plain(heads.Ridge):
        name = "plain"

    monkeypatch.setitem(heads.by_name, "plain", Plain)
    assert heads_named(["plain"], runs.FinishedRun(two[0], checkpoint="initial").learner)["plain"].l2 == Plain().l2
