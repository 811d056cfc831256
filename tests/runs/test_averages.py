"""Moving averages of the weights in the command line's loop: validated, saved and used, and no obstacle to resuming."""

import os
import signal

import keras
import numpy as np
import pytest

from tests.conftest import make_split
from tests.learners.problems import small_network
from tests.runs.test_training import train, weights
from tf_unravel import data, learners, runs
from tf_unravel.runs.checkpoints import Checkpoints, averaged

AVERAGING = ("sgd.ema_momentum = 0.8", "run.epochs = 1", "Validation.projection_every = 0")


def trainable(learner) -> list[np.ndarray]:
    return [weight.numpy() for weight in learner.trainable_variables]


@pytest.fixture(scope="module")
def averaging(photographs, tmp_path_factory):
    """A run with averages; the weights after every step, and those that were validated."""
    steps, validated = [], []
    run_dir = tmp_path_factory.mktemp("averages") / "run"
    log, extract = runs.training._Loop._log, runs.training.evaluation.extract_features
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs.training._Loop, "_log", lambda self, values, bar: (
            steps.append(trainable(self.learner)), log(self, values, bar))[1])
        patch.setattr(runs.training.evaluation, "extract_features", lambda backbone, images: (
            validated.append([weight.numpy() for weight in backbone.trainable_variables]),
            extract(backbone, images))[1])
        train(photographs, run_dir, *AVERAGING)
    return run_dir, steps, validated


def test_a_run_is_validated_and_read_with_its_averages(averaging):
    """average_1 = w_1, average_t = 0.8 average_(t-1) + 0.2 w_t, as Keras has it."""
    run_dir, steps, validated = averaging
    expected = steps[0]
    for later in steps[1:]:
        expected = [0.8 * a + 0.2 * w for a, w in zip(expected, later, strict=True)]
    assert max(np.abs(a - w).max() for a, w in zip(expected, steps[-1], strict=True)) > 1e-3
    for checkpoint in ("best", "last"):
        read = trainable(runs.FinishedRun(run_dir, checkpoint=checkpoint).learner)
        for a, b in zip(expected, read, strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)
        for a, b in zip(validated[-1], read, strict=False):  # the backbone's
            np.testing.assert_array_equal(b, a)


def test_stop_and_resume_with_averages_is_bit_identical(photographs, tmp_path, averaging, monkeypatch):
    original = runs.training._Loop._log

    def interrupt(self, values, bar):
        original(self, values, bar)
        if self.progress.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(runs.training._Loop, "_log", interrupt)
    assert train(photographs, tmp_path / "run", *AVERAGING).stopped_by == signal.SIGTERM
    monkeypatch.setattr(runs.training._Loop, "_log", original)
    assert train(photographs, tmp_path / "run", *AVERAGING).progress.step == 12
    expected, got = weights(averaging[0]), weights(tmp_path / "run")
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(value, got[name])


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
@pytest.mark.parametrize("overwrite", [None, 2])
def test_the_file_holds_what_fit_ends_with(overwrite, policy, tmp_path):
    """The same steps by `fit` and by the loop's own: the averages of one are the other's weights."""
    batches = data.class_pairs(make_split(4, 6), 8).take(3)
    keras.config.set_dtype_policy(policy)
    try:
        made = []
        for _ in range(3):
            keras.utils.set_random_seed(0)
            made.append(learners.Classical(small_network(), 4))
    finally:
        keras.config.set_dtype_policy("float32")
    fitted, stepped, reader = made
    for learner in (fitted, stepped):
        optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=overwrite)
        learner.compile(optimizer=optimizer, run_eagerly=True)
        learner.optimizer.build(learner.trainable_variables)
    fitted.fit(batches, verbose=0)
    for batch in batches:
        stepped.train_step(batch)
    own, checkpoints = trainable(stepped), Checkpoints(tmp_path)
    checkpoints.save(stepped, {"step": 3})
    for before, after in zip(own, trainable(stepped), strict=True):
        np.testing.assert_array_equal(after, before)
    assert checkpoints.restore_latest(reader) == {"step": 3}
    for wanted, got in zip(trainable(fitted), trainable(reader), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)
    for variable in stepped.trainable_variables:
        variable.assign(np.zeros(variable.shape))
    assert checkpoints.restore_latest(stepped) == {"step": 3}
    for before, after in zip(own, trainable(stepped), strict=True):
        np.testing.assert_array_equal(after, before)


def test_before_the_first_step_there_is_no_average_to_use():
    learner = learners.Classical(small_network(), 4)
    learner.compile(optimizer=learners.sgd(1, ema_momentum=0.9))
    learner.optimizer.build(learner.trainable_variables)
    before = trainable(learner)
    with averaged(learner) as put_aside:
        assert not put_aside
        np.testing.assert_array_equal(trainable(learner)[0], before[0])


@pytest.mark.parametrize("momentum", [1.0, -0.1, float("nan"), "0.9"])
def test_a_momentum_out_of_range_is_one_line(momentum):
    for make in (learners.sgd, learners.adam, lambda _, **given: learners.annealed_sgd(1, 1, **given)):
        with pytest.raises(ValueError, match=r"ema_momentum must be in \[0, 1\), such as 0.999. Received: .*\.$"):
            make(1, ema_momentum=momentum)
