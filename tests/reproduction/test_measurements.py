"""Measurements: what may be printed, and the files that keep it."""

import dataclasses
import json
import math

import numpy as np
import pytest

from tests.reproduction.fakes import finish, put
from tf_unravel.reproduction.jobs import measurements
from tf_unravel.reproduction.jobs.measurements import Accuracy, Measured, Separation, Tuned

WHOLE = {"mean": 0.5, "error": 0.1, "count": 3, "unit": "tasks", "seed": 0, "protocol": "inductive",
         "values": np.zeros(3), "fingerprint": "f"}


@pytest.mark.parametrize("missing", [{"error": math.nan}, {"error": None}, {"mean": math.nan}, {"count": 1},
                                     {"seed": None}, {"protocol": ""}, {"unit": ""}, {"fingerprint": ""}])
def test_a_number_without_its_interval_tasks_seed_and_protocol_is_refused(missing):
    Measured(**WHOLE)
    with pytest.raises(ValueError, match="interval, the number of its tasks, their seed and the BatchNorm protocol"):
        Measured(**{**WHOLE, **missing})


def test_summary_by_hand():
    # 1, 2, 6: mean 3, variance (4 + 1 + 9) / 2 = 7, standard error sqrt(7 / 3)
    found = Measured.of([1.0, 2.0, 6.0], "tasks", 0, "inductive", "f")
    assert (found.mean, found.count) == (3.0, 3) and found.error == pytest.approx(math.sqrt(7 / 3))
    percent = found.times(100)
    assert percent.mean == 300 and percent.error == pytest.approx(100 * found.error)
    np.testing.assert_array_equal(percent.values, [100, 200, 600])


def test_values_that_are_missing_do_not_count():
    found = Measured.of([1.0, None, 3.0], "pairs", 0, "inductive", "f")
    assert (found.mean, found.count) == (2.0, 2)


def test_a_measurement_reads_back(tmp_path):
    wanted = Accuracy("svm", 1, 4)
    put(tmp_path, wanted, accuracy=[0.2, 0.4, 0.6, 0.8])
    found = measurements.measured(tmp_path, wanted, "accuracy")
    assert found.mean == pytest.approx(0.5) and found.count == 4 and found.unit == "tasks"
    assert measurements.missing(tmp_path, [wanted, Separation("test", 4)]) == [Separation("test", 4)]


def test_a_measurement_of_other_settings_is_not_this_one(tmp_path):
    wanted = Accuracy("svm", 1, 4)
    put(tmp_path, wanted, accuracy=[0.5] * 4)
    for other in (dataclasses.replace(wanted, tasks=5), dataclasses.replace(wanted, bindings=("SVM.c = 1.0",))):
        assert measurements.read(tmp_path, other) is None


def test_a_measurement_of_other_weights_is_stale(tmp_path):
    wanted = Accuracy("svm", 1, 4)
    put(tmp_path, wanted, accuracy=[0.5] * 4)
    finish(tmp_path, steps=20)  # the run was trained on
    assert measurements.read(tmp_path, wanted) is None


@pytest.mark.parametrize("damage", ["", "{", '{"about": {}}', "null"])
def test_a_damaged_file_is_measured_again(tmp_path, damage):
    wanted = Accuracy("svm", 1, 4)
    put(tmp_path, wanted, accuracy=[0.5] * 4)
    (tmp_path / "paper" / wanted.file).write_text(damage)
    assert measurements.missing(tmp_path, [wanted]) == [wanted]


def test_values_keep_nine_digits_and_json_has_no_nan(tmp_path):
    short = measurements._short(np.array([1 / 3, np.nan]))
    assert short == [0.333333333, None]
    assert json.loads(json.dumps(short)) == short


TUNED = Tuned(5, 4, (0.003, 0.01, 0.1), 2, ("FineTune.steps = 3",))


def tried(run_dir, accuracies: dict[float, float]) -> None:
    for rate, accuracy in accuracies.items():
        put(run_dir, TUNED.at(rate), accuracy=[accuracy, accuracy])


@pytest.mark.parametrize(("accuracies", "best"), [
    ({0.003: 0.3, 0.01: 0.5, 0.1: 0.4}, 0.01), ({0.003: 0.5, 0.01: 0.5, 0.1: 0.4}, 0.003), ({0.01: 0.2, 0.1: 0.3}, 0.1),
])
def test_the_rate_is_the_best_of_the_validation_classes(tmp_path, accuracies, best):
    tried(tmp_path, accuracies)
    choice = TUNED.choice(tmp_path)
    assert choice["rate"] == best and choice["validation"][f"{best:g}"] == max(accuracies.values())
    assert {trial.split for trial in TUNED.trials} == {"val"} and {trial.seed for trial in TUNED.trials} == {1}


def test_a_rate_at_which_fine_tuning_fails_is_not_chosen(tmp_path):
    tried(tmp_path, {0.003: 0.3})
    for rate in (0.01, 0.1):
        failed = {"values": {}, "problem": f"not finite at {rate}"}
        measurements._write(measurements.RunFolder(tmp_path), TUNED.at(rate), failed)
    assert TUNED.choice(tmp_path)["rate"] == 0.003
    (tmp_path / "paper" / TUNED.at(0.003).file).unlink()
    with pytest.raises(ValueError, match="at every rate: .*not finite at 0.01; not finite at 0.1"):
        TUNED.choice(tmp_path)


def test_one_rate_needs_no_trial(tmp_path):
    one = dataclasses.replace(TUNED, rates=(0.05,))
    assert one.trials == () and one.choice(tmp_path)["rate"] == 0.05


def test_trials_that_are_there_are_not_run_again_and_the_test_classes_come_last(tmp_path, monkeypatch):
    asked = []

    def take(run_dir, bindings, wanted):
        asked.append(wanted)
        tried(run_dir, {each.rate: 0.5 - each.rate for each in wanted if each != TUNED})

    monkeypatch.setattr(measurements, "_take", take)
    tried(tmp_path, {0.01: 0.4})
    measurements.take(tmp_path, [], [TUNED])
    assert list(asked[0]) == [TUNED.at(0.003), TUNED.at(0.1)]
    assert asked[1] == {TUNED: ("FineTune.steps = 3", "FineTune.learning_rate = 0.003")}


def test_a_tuned_accuracy_says_its_rate(tmp_path):
    put(tmp_path, TUNED, accuracy=[0.2, 0.4, 0.6, 0.8])
    path = tmp_path / "paper" / TUNED.file
    told = {"rate": 0.01, "protocol": "transductive; 3 steps of SGD at rate 0.01 on all support images"}
    path.write_text(json.dumps(json.loads(path.read_text()) | told))
    found = measurements.measured(tmp_path, TUNED, "accuracy")
    assert found.rate == found.times(100).rate == 0.01
    assert found.protocol == "transductive; 3 steps of SGD at the rate beside the number on all support images"
