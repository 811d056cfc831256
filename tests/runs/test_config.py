"""Every gin file is parsed, and every run file is built and trained for a step."""

import dataclasses
import pathlib
import re

import gin
import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import make_split
from tf_unravel import heads, runs
from tf_unravel.runs import config

GIN = config.gin_folder()
RUN_FILES = sorted(path.name for path in (GIN / "run").glob("*.gin"))

# Batches that a test can afford; a run reads those of its own learner.
SMALL = ["ClassPairs.batch_size = 8", "Episodes.tasks = 2", "Episodes.ways = 5", "Episodes.shots = 1",
         "Episodes.queries = 1",
         "InnerBatches.tasks = 2", "InnerBatches.shots = 2", "inner_steps = 1", "inner_batch = 3",
         "MAML.inner_steps = 1", "pretrained.weights = None"]


@pytest.mark.parametrize("name", RUN_FILES)
def test_run_file_builds_and_takes_a_step(name, monkeypatch):
    plan = runs.plan(runs.parse([f"gin/run/{name}"], SMALL))
    size = 84 if "mini_imagenet" in name else 32
    split = make_split(num_classes=5, per_class=4, size=size)
    learner = plan.build(config.DataFacts.of(split))
    learner.compile(optimizer=plan.optimizer(plan.batches.steps_per_epoch(split), total_epochs=plan.epochs))
    before = [w.numpy().copy() for w in learner.backbone.trainable_variables]
    logs = learner.train_step(next(iter(plan.batches.dataset(split, seed=0))))
    assert learner.own_head() is not None
    assert np.isfinite(float(logs["loss"]))
    assert any((a != w.numpy()).any() for a, w in zip(before, learner.backbone.trainable_variables, strict=True))
    if "regularizer" in logs:
        regularized = "classical" not in name
        assert (float(logs["regularizer"]) > 0) == regularized


# What the guide's table promises, `a = b`; each is built by a run that it makes sense for.
GUIDE = (pathlib.Path(__file__).parents[2] / "docs/guides/meta_learning.md").read_text(encoding="utf-8")
PROMISED = re.findall(r"`((?:MAML|Episodic|Reptile|FineTune|run)\.\w+ = [^`]+)`", GUIDE.split("| to get |")[1])


@pytest.mark.parametrize("binding", PROMISED)
def test_a_binding_of_the_guide_can_be_built(binding):
    of = {"MAML": "tiny32_maml", "Reptile": "tiny32_reptile"}.get(binding.split(".")[0], "tiny32_r2d2")
    plan = runs.plan(runs.parse([f"gin/run/{of}.gin"], [*SMALL, binding]))
    try:
        learner = plan.build(config.DataFacts.of(make_split(num_classes=5, per_class=4, size=32)))
        assert config.heads_named(["own", "fine_tune"], learner)
    finally:
        keras.config.set_dtype_policy("float32")


def test_a_pretrained_network_is_not_given_other_pixels():
    plan = runs.plan(runs.parse(["gin/run/own_images_pretrained.gin"],
                                [*SMALL, "run.normalization = ((1.0,), (1.0,))"]))
    with pytest.raises(config.ConfigError, match="run.normalization is for a backbone that is trained from scratch"):
        plan.build(config.DataFacts.of(make_split(num_classes=5, per_class=4, size=32)))


def test_the_guide_promises_something():
    assert len(PROMISED) > 10


@pytest.mark.parametrize("name", RUN_FILES)
def test_run_file_is_at_most_two_includes_deep_and_names_its_command(name):
    def depth(path: pathlib.Path) -> int:
        lines = path.read_text().splitlines()
        included = [line.split("'")[1] for line in lines if line.startswith("include")]
        return 1 + max((depth(GIN / file) for file in included), default=-1)

    path = GIN / "run" / name
    assert depth(path) <= 2
    assert f"tf-unravel train --gin_file=gin/run/{name}" in path.read_text()


def test_all_gin_files_are_reached():
    reached = set()

    def visit(path: pathlib.Path) -> None:
        reached.add(path)
        for line in path.read_text().splitlines():
            if line.startswith("include"):
                visit(GIN / line.split("'")[1])

    for name in RUN_FILES:
        visit(GIN / "run" / name)
    scales = set(GIN.glob("paper/*.gin"))  # those are read by tests/reproduction/test_scales.py
    assert reached == set(GIN.glob("*/*.gin")) - scales


def test_config_text_reads_back_to_itself():
    configuration = runs.parse(["gin/run/demo_feature_clustering.gin"], ["run.epochs = 7"])
    again = runs.parse(text=configuration.text)
    assert again.text == configuration.text
    assert runs.plan(again).epochs == 7


def test_bindings_win_over_files():
    plan = runs.plan(runs.parse(["gin/run/demo_feature_clustering.gin"], ["FeatureClustering.coefficient = 0.7"]))
    assert plan.learner(backbone=_tiny(), num_labels=3).regularizer.coefficient == 0.7


def _tiny():
    from tf_unravel import backbones

    return backbones.conv4((16, 16, 3), filters=2)


@pytest.mark.parametrize(
    ("files", "bindings", "message"),
    [
        (["gin/run/absent.gin"], [], "--gin_file gin/run/absent.gin: no such file; see the folder .*gin"),
        (["gin/run/own_image.gin"], [], "own_image.gin: no such file; do you mean gin/run/own_images.gin"),
        (["gin/run/demo_classical.gin"], ["run.epoch = 3"], "epoch"),
        (["gin/data/image_folders.gin"], [], "no such file; do you mean gin/data/image_folder.gin"),
        (["gin/run/demo_classical.gin"], ["run.epochs = = 3"], "cannot be read"),
        (["gin/run/demo_classical.gin"], ["load.root = /a/b"], "load.root = /a/b' cannot be read.*needs quotes"),
        (["gin/data/glyphs.gin", "gin/backbone/conv4.gin", "gin/learner/classical.gin"], [], "say run.epochs; give"),
        (["gin/run/demo_classical.gin"], ["run.learner = @Unknown"], "Unknown"),
        (["gin/run/demo_classical.gin"], ["run.epochs = '3'"], "Received: '3'"),
        (["gin/run/demo_classical.gin"], ["run.threads_per_op = -1"], "run.threads_per_op .* Received: -1"),
        (["gin/run/demo_classical.gin"], ["run.backbone = @sgd"], "does not fit"),
        (["gin/run/demo_classical.gin"], ["run.dtype = 'float16'"],
         "run.dtype is float32, mixed_bfloat16 or mixed_float16. Received: 'float16'"),
        (["gin/run/demo_classical.gin"], ["run.learner = 'ProtoNet'"],
         "run.learner is @Classical, @Episodic, @MAML or @Reptile. Received: 'ProtoNet'"),
        (["gin/run/demo_classical.gin"], ["run.backbone = 'conv4'"], "run.backbone is @conv4.* Received: 'conv4'"),
        (["gin/run/demo_classical.gin"], ["run.batches = @Episodes"], r"run.batches is @ClassPairs\(\).*'Episodes'"),
        (["gin/run/demo_classical.gin"], ["run.validation = 5"], r"run.validation is @Validation\(\). Received: 5"),
        (["gin/run/demo_classical.gin"], ["Validation.head = 'ridge'"], r"Validation.head .* @Ridge\(\).*: 'ridge'"),
        (["gin/run/tiny32_protonet.gin"], ["Episodic.head = 'prototypes'"], r"@Ridge\(\).*Received: 'prototypes'"),
        (["gin/run/tiny32_protonet.gin"], ["Episodic.head = @FineTune()"], "must read features.*Received: fine_tune"),
        (["gin/run/tiny32_reptile.gin"], ["Reptile.inner_optimizer = @adam"], r"@heads.Adam\(\).*Received: 'adam'"),
        (["gin/run/tiny32_maml.gin"], ["MAML.evaluation_step = 3"],
         "named 'evaluation_step' .its parameters are inner_steps, .*adapted, .*evaluation_steps, .*weight_decay"),
        (["gin/run/tiny32_maml.gin"], ["FineTune.step = 3"], "'step' .its parameters are steps, .*batch_size, .*seed"),
        (["gin/run/tiny32_reptile.gin"], ["heads.Adam.learning_rate = -1"],
         "does not fit: .*Received: learning_rate=-1"),
        (["gin/run/tiny32_reptile.gin"], ["InnerBatches.tasks = 0"], "fit: InnerBatches.tasks must be a whole"),
        (["gin/run/tiny32_protonet.gin"], ["Episodic.scale = float('nan')"],
         "'float' is no value .line 1. .a value is a number, True, None, a list, @name, %macro, or text, which needs"),
        (["gin/run/tiny32_protonet.gin"], ["Episodic.scal = 3"],
         "parameter named 'scal' .its parameters are head, scale, learn_scale, bias, label_smoothing, passes, weight"),
        (["gin/run/tiny32_protonet.gin"], ["Prototypes.norm = 3"], "'norm' .its parameters are normalize."),
        (["gin/run/tiny32_protonet.gin"], ["run.epoch = 3"], "checkpoint_minutes, dtype, threads_per_op.; "),
        (["gin/run/tiny32_protonet.gin"], ["run.heads = {}"], "heads.* cannot be read"),
    ],
)
def test_bad_configuration_is_one_clear_line(files, bindings, message):
    with pytest.raises(config.ConfigError, match=message) as caught:
        runs.plan(runs.parse(files, bindings)).build(config.DataFacts.of(make_split()))
    assert "\n" not in str(caught.value) and " at 0x" not in str(caught.value)


@dataclasses.dataclass(frozen=True)
class ScaledPrototypes:
    """A head of somebody's own that gin has never heard of."""

    scale: float = 10.0
    name = "scaled_prototypes"

    def __call__(self, support, support_labels, query, ways):
        return self.scale * heads.Prototypes()(support, support_labels, query, ways)


HEAD_MODULE = """
import dataclasses
import tf_unravel as tu

@dataclasses.dataclass(frozen=True)
class Halved:
    factor: float = 0.5
    name = "halved_of_the_test"

    def __call__(self, support, support_labels, query, ways):
        return self.factor * tu.heads.Prototypes()(support, support_labels, query, ways)

tu.heads.by_name[Halved.name] = Halved
"""


def test_a_head_in_by_name_can_be_used_from_gin(monkeypatch):
    """As CONTRIBUTING says: `heads.by_name` alone. Defined anew, as in a notebook, the later class counts."""
    for head in (ScaledPrototypes, type("ScaledPrototypes", (ScaledPrototypes,), {"__module__": __name__})):
        monkeypatch.setitem(heads.by_name, ScaledPrototypes.name, head)
        bindings = ["Episodic.head = @ScaledPrototypes()", "ScaledPrototypes.scale = 3.0"]
        plan = runs.plan(runs.parse(["gin/run/tiny32_protonet.gin"], [*SMALL, *bindings]))
        learner = plan.build(config.DataFacts.of(make_split(num_classes=5, per_class=4, size=32)))
        assert type(learner.head) is head and learner.head.scale == 3.0
        assert plan.heads[ScaledPrototypes.name]().scale == 3.0
        named = config.heads_named([ScaledPrototypes.name], learner)[ScaledPrototypes.name]
        assert named.settings() == "scaled_prototypes, scale 3"


@pytest.mark.parametrize("where", ["file", "binding", "text"])
def test_a_head_of_an_imported_module_can_be_used_at_once(where, tmp_path, monkeypatch):
    """In a run's config.gin too, which a fresh process reads."""
    monkeypatch.setattr(heads, "by_name", dict(heads.by_name))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"halved_{where}.py").write_text(HEAD_MODULE)
    lines = [f"import halved_{where}", f"halved_{where}.Halved.factor = 0.25"]
    (tmp_path / "mine.gin").write_text("\n".join(lines))
    base = "gin/run/tiny32_protonet.gin"
    configuration = {
        "file": lambda: runs.parse([base, str(tmp_path / "mine.gin")]),
        "binding": lambda: runs.parse([base], lines),
        "text": lambda: runs.parse([base], text="\n".join(lines)),
    }[where]()
    assert runs.plan(configuration).heads["halved_of_the_test"]().factor == 0.25


def test_settings_of_a_group_stand_one_by_one_in_a_gin_file():
    bindings = ["Reptile.transductive = True", "Reptile.parallel_tasks = 1", "FineTune.batch_size = 3",
                "FineTune.seed = 4"]
    plan = runs.plan(runs.parse(["gin/run/tiny32_reptile.gin"], [*SMALL, *bindings]))
    learner = plan.build(config.DataFacts.of(make_split(num_classes=5, per_class=4, size=32)))
    named = config.heads_named(["own", "fine_tune"], learner)
    assert (named["own"].batchnorm.name, named["own"].steps, learner.parallel_tasks) == ("transductive", 50, 1)
    assert (named["fine_tune"].batch_size, named["fine_tune"].seed) == (3, 4)


def test_a_misspelt_option_in_a_file_is_answered_with_the_names_there_are(tmp_path):
    (tmp_path / "mine.gin").write_text("Ridge.lambda_ = 3\n")
    with pytest.raises(config.ConfigError, match=r"named 'lambda_' .its parameters are l2.; in .*mine.gin.*line 1"):
        runs.parse([str(tmp_path / "mine.gin")])


@pytest.mark.parametrize("binding", ["Episodic.scal = 3", "run.learner = @Unknown"])
def test_quotes_are_no_advice_for_a_misspelt_name(binding):
    with pytest.raises(config.ConfigError) as caught:
        runs.parse(["gin/run/tiny32_protonet.gin"], [binding])
    assert "quotes" not in str(caught.value)


@pytest.mark.parametrize("binding", ["adam.epochs = 5", "run.optimizer = @heads.Adam", "adam.rates = 'fast'"])
def test_an_optimizer_that_cannot_be_made_is_one_clear_line(binding):
    plan = runs.plan(runs.parse(["gin/run/tiny32_maml.gin"], [binding]))
    with pytest.raises(config.ConfigError, match="does not fit") as caught:
        plan.build_optimizer(10)
    assert "\n" not in str(caught.value)


def test_threads_count_where_a_run_asks_for_them_and_never_fail(monkeypatch):
    """A process of its own would see them; here TensorFlow has long begun."""
    given = []
    monkeypatch.setattr(tf.config.threading, "set_intra_op_parallelism_threads", given.append)
    for name in ("demo_classical", "tiny32_maml"):
        plan = runs.plan(runs.parse([f"gin/run/{name}.gin"]))
        plan.use_threads()
    assert given == [1]
    monkeypatch.undo()
    plan.use_threads()


def test_no_configuration_says_what_to_give():
    with pytest.raises(config.ConfigError, match="give --gin_file"):
        runs.plan(runs.parse())


ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32")


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_gin_files_of_other_editors_are_read(tmp_path, encoding, newline):
    """With a byte-order mark and with the ends of lines that Windows has, as a file, an included one, and a run's."""

    def write(name: str, text: str) -> str:
        (tmp_path / name).write_bytes(text.replace("\n", newline).encode(encoding))
        return str(tmp_path / name)

    write("included.gin", "# Größe\nRidge.l2 = 7.0\n")
    mine = write("mine.gin", f"# Größe\ninclude {str(tmp_path / 'included.gin')!r}\nrun.epochs = \\\n    4\n")
    configuration = runs.parse(["gin/run/demo_classical.gin", mine])
    assert runs.plan(configuration).epochs == 4 and runs.plan(configuration).heads["ridge"]().l2 == 7.0
    write("config.gin", configuration.text)
    folder = runs.RunFolder(tmp_path)
    folder.check_config(configuration)
    assert runs.parse(text=folder.read_config()).text == configuration.text
    with pytest.raises(config.ConfigError, match="was: run.epochs = 4; is now: run.epochs = 5"):
        folder.check_config(runs.parse(text=configuration.text, bindings=["run.epochs = 5"]))


def test_a_mark_before_a_binding_is_no_part_of_it():
    text, binding = "\ufeffRidge.l2 = 7.0", "\ufeffSVM.c = 3.0"
    assert {"Ridge.l2 = 7.0", "SVM.c = 3.0"} == set(runs.parse(text=text, bindings=[binding]).statements())


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(("content", "message"), [
    (b"Ridge.lambda_ = 3", "'lambda_' .its parameters are l2.; in .*mine.gin.*line 1"),
    (b"# a\nrun.epochs = = 3", "cannot be read: .*mine.gin.* line 2"),
])  # fmt: skip
def test_a_bad_file_is_one_line_that_names_it(tmp_path, encoding, content, message):
    (tmp_path / "mine.gin").write_bytes(content.decode().encode(encoding))
    with pytest.raises(config.ConfigError, match=message) as caught:
        runs.parse([str(tmp_path / "mine.gin")])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\x00\x81", b"# \xe9\nrun.epochs = 3", b"\xff\xfea", b"\x00"])
def test_a_file_that_is_no_text_is_one_line(tmp_path, content):
    (tmp_path / "mine.gin").write_bytes(content)
    with pytest.raises(config.ConfigError, match="the configuration cannot be read") as caught:
        runs.parse([str(tmp_path / "mine.gin")])
    assert "\n" not in str(caught.value)


def test_gin_package_is_not_shadowed():
    assert hasattr(gin, "parse_config")
    assert not (GIN / "__init__.py").exists()


FORMS = {
    "FeatureClustering.pairs": {"True": "by pairs of classes", "False": "over the whole batch, as printed"},
    "HyperplaneVariation.squared": {"True": "squared", "False": "as printed, not squared"},
    "Reptile.sum_over_batch": {"True": "beside the summed loss", "False": "beside the mean loss"},
}
COEFFICIENTS = {
    "feature_clustering": ("FeatureClustering.coefficient", "FeatureClustering.pairs"),
    "hyperplane_variation": ("HyperplaneVariation.coefficient", "HyperplaneVariation.squared"),
    "weight_clustering": ("Reptile.weight_clustering", "Reptile.sum_over_batch"),
}


@pytest.mark.parametrize("path", [path for path in sorted((config.gin_folder() / "run").glob("*.gin"))
                                  if any(f"learner/{name}.gin" in path.read_text() for name in COEFFICIENTS)],
                         ids=lambda path: path.stem)
def test_a_run_file_names_its_coefficient_with_its_form(path):
    text = path.read_text()
    header = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    whole = runs.parse([str(path)])
    (method,) = [name for name in COEFFICIENTS if f"learner/{name}.gin" in text]
    coefficient, form = COEFFICIENTS[method]
    values = dict(re.findall(r"^(\S+) = (\S+)$", whole.text, re.MULTILINE))
    assert FORMS[form][values.get(form, "False")] in header
    stated = {float(number) for number in re.findall(r"(?:R_FC|R_HV|weight clustering) ([\d.e-]+) \(", header)}
    assert stated == {float(values[coefficient])}


def test_a_folder_of_the_users_that_is_called_as_an_include_is_in_nobodys_way(tmp_path, monkeypatch):
    """gin takes "data/glyphs.gin" for a file of a package `data`, and crashes where that is a mere folder."""
    (tmp_path / "data").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert runs.parse(["gin/run/demo_classical.gin"]).dataset_setting("name") == "glyphs"
