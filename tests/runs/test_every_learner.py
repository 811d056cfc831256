"""What a run promises, for every learner: it trains by its gin file, and stopping changes nothing."""

import os
import signal

import keras
import numpy as np
import pytest

from tests.learners.problems import small_network
from tests.runs.test_training import weights
from tf_unravel import cli, learners, runs
from tf_unravel.commands import reports
from tf_unravel.runs.checkpoints import Checkpoints

EACH_KIND = ["metaoptnet", "maml", "weight_clustering"]
THEIR_VARIANTS = [pytest.param(name, marks=pytest.mark.long) for name in ("protonet", "r2d2", "fomaml", "reptile")]
BINDINGS = (
    "load.image_size = 16", "run.epochs = 2", "conv4.filters = 4", "Validation.num_tasks = 4", "Validation.ways = 3",
    "Validation.queries = 3", "Validation.projection_every = 0", "Episodes.ways = 3", "Episodes.shots = 2",
    "Episodes.queries = 2", "Episodes.tasks = 2", "Episodes.padding = 2", "Episodes.batches_per_epoch = 4",
    "InnerBatches.ways = 3", "InnerBatches.shots = 4", "InnerBatches.tasks = 2", "InnerBatches.batches_per_epoch = 4",
    "inner_steps = 2", "inner_batch = 4", "MAML.inner_steps = 1",
    "MAML.evaluation_steps = 2", "MAML.learn_rates = True", "Reptile.evaluation_steps = 2",
)  # fmt: skip


def train(photographs, run_dir, learner, *more):
    configuration = runs.parse(["data/image_folder.gin", "backbone/conv4.gin", f"learner/{learner}.gin"],
                      [f"load.root = '{photographs}'", *BINDINGS, *more])
    return runs.train(runs.plan(configuration), runs.RunFolder(run_dir), configuration)


@pytest.mark.parametrize("learner", EACH_KIND + THEIR_VARIANTS)
def test_stop_and_resume_is_bit_identical(learner, photographs, tmp_path, monkeypatch):
    """Optimizer slots, Reptile's persistent moments, inner rates and samplers included."""
    assert train(photographs, tmp_path / "whole", learner).progress.step == 8
    original = runs.training._Loop._log

    def interrupt(self, values, bar):
        original(self, values, bar)
        if self.progress.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(runs.training._Loop, "_log", interrupt)
    assert train(photographs, tmp_path / "stopped", learner).stopped_by == signal.SIGTERM
    monkeypatch.setattr(runs.training._Loop, "_log", original)
    assert train(photographs, tmp_path / "stopped", learner).progress.step == 8
    expected, got = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(value, got[name])


@pytest.mark.parametrize(("learner", "binding", "message"), [
    ("maml", "run.batches = @InnerBatches()", r"MAML trains on batches of episodes: run.batches = @Episodes\(\)"),
    ("protonet", "run.batches = @ClassPairs()", "Episodic trains on batches of episodes"),
    ("classical", "run.batches = @Episodes()", r"run.batches = @ClassPairs\(\)"),
    ("reptile", "run.batches = @ClassPairs()", r"run.batches = @InnerBatches\(\)"),
    ("reptile", "Reptile.inner_steps = 3", "gin macros"),
    ("maml", "Validation.ways = 4", "Validation.ways = 3"),
    ("maml", "MAML.batchnorm = 'mine'", "MAML.batchnorm is one of"),
])  # fmt: skip
def test_what_cannot_be_trained_fails_before_the_folder_is_taken(learner, binding, message, photographs, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        train(photographs, tmp_path / "run", learner, binding)
    assert "\n" not in str(caught.value) and not (tmp_path / "run" / "config.gin").exists()


@pytest.mark.parametrize(("learner", "binding", "advice"), [
    ("maml", "MAML.inner_learning_rate = 1e30", "the learning rate or MAML.inner_learning_rate"),
    ("reptile", "heads.Adam.learning_rate = 1e38", "the learning rate, or that of Reptile.inner_optimizer, or"),
    ("weight_clustering", "heads.Adam.learning_rate = 1e38", ".* or Reptile.weight_clustering"),
    ("feature_clustering", "FeatureClustering.coefficient = 1e39", ".* the coefficient of Classical.regularizer"),
])  # fmt: skip
def test_a_divergence_names_what_may_be_lowered(learner, binding, advice, photographs, tmp_path):
    with pytest.raises(ArithmeticError, match=f"lower {advice}"):
        train(photographs, tmp_path / "run", learner, binding, "ClassPairs.batch_size = 12", "ClassPairs.padding = 2")


def test_a_checkpoint_holds_every_variable(tmp_path):
    """Running statistics too: training does not read them, so that the weights of a resumed run do not miss them."""
    kept = []
    for _ in range(2):
        learner = learners.Reptile(small_network(), 3, 2, 4)
        learner.compile(optimizer=keras.optimizers.SGD(0.5, momentum=0.9))
        learner.optimizer.build(learner.trainable_variables)
        kept.append((learner, [*learner.variables, *learner.optimizer.variables]))
    (saved, variables), (restored, others) = kept
    for i, variable in enumerate(variables):
        variable.assign(np.full(variable.shape, i + 2))
    Checkpoints(tmp_path).save(saved, {"step": 1})
    assert Checkpoints(tmp_path).restore_latest(restored) == {"step": 1}
    for variable, other in zip(variables, others, strict=True):
        np.testing.assert_array_equal(other.numpy(), variable.numpy())


@pytest.mark.parametrize("learner", EACH_KIND)
def test_a_finished_run_is_evaluated_under_its_own_head_and_others(learner, photographs, tmp_path, capsys):
    train(photographs, tmp_path / "run", learner)
    arguments = ["evaluate", f"--run_dir={tmp_path / 'run'}", "--heads=own,prototypes", "--ways=3", "--shots=1,2",
                 "--queries=3", "--tasks=6"]
    assert cli.main(arguments) == 0
    table = capsys.readouterr().out
    assert "own" in table and "prototypes" in table and "inductive" in table
    assert ("transductive" in table) == (learner == "maml")
    assert ("each query" in table) == (learner == "weight_clustering")
    alike = learner == "metaoptnet"  # own and prototypes have one protocol
    assert f"\nown = {'svm, c 0.1, l2 1, ' if alike else 'fine_tune, from the learned classifier'}" in table
    assert f"\nBatchNorm{'' if alike else ' of prototypes'}: inductive (running statistics)\n" in table
    assert ("\nBatchNorm of own: " in table) != alike


def test_other_ways_than_learned_are_refused_before_the_first_head(photographs, tmp_path, capsys, monkeypatch):
    train(photographs, tmp_path / "run", "maml", "Validation.every_epochs = 0")
    monkeypatch.setattr(reports.evaluation, "evaluate_heads", lambda *_, **__: pytest.fail("a head was computed"))
    arguments = ["evaluate", f"--run_dir={tmp_path / 'run'}", "--heads=prototypes,own", "--ways=4", "--queries=3"]
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "--ways=3" in error and "Validation.ways = 3" in error and "--heads=fine_tune" in error
    assert "Received: ways=4" in error
