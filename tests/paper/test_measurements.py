"""Measurements: what may be printed, and the files that keep it."""

import dataclasses
import json
import math

import numpy as np
import pytest

from tests.paper.fakes import finish, put
from tf_unravel.paper import measurements
from tf_unravel.paper.measurements import Accuracy, Measured, Separation

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
