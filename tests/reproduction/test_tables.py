"""Exhibits as data: every published number has its place, and each place the right run."""

import collections

import pytest

from tests.reproduction.fakes import SCALE, workspace
from tf_unravel.files import write_json
from tf_unravel.reproduction.exhibits import published
from tf_unravel.reproduction.jobs import scales
from tf_unravel.reproduction.jobs.measurements import Accuracy, Separation, Tuned
from tf_unravel.reproduction.report import report

PAPER = {exhibit.name: exhibit for exhibit in report.exhibits(scales.load("paper"), (0,))}
DESK = {exhibit.name: exhibit for exhibit in report.exhibits(scales.load("desk"), (0, 1))}


@pytest.mark.parametrize("name", published.TABLES)
def test_every_published_number_stands_in_its_table_once(name):
    cells = [cell for cell in PAPER[name].cells if cell.column[-1] != "one epoch, times classical"]
    there = collections.Counter(cell.published for cell in cells if cell.published is not None)
    assert there == collections.Counter(published.TABLES[name].values())


@pytest.mark.parametrize("name", published.TABLES)
def test_every_place_has_a_number_of_ours_at_the_paper_scale(name):
    assert all(cell.numbers for cell in PAPER[name].cells)


def cell(exhibit, *labels):
    (found,) = [cell for cell in exhibit.cells if set(labels) <= {*cell.row, *cell.column}]
    return found


def test_table1_evaluates_each_extractor_under_each_head():
    number = cell(PAPER["table1"], "MetaOptNet-M", "ProtoNet").numbers[0]
    assert str(number.run) == "mini_imagenet/metaoptnet@resnet12/seed-0"
    assert number.measurement == Accuracy("prototypes", 1, 2000) and number.scale == 100
    adapted = cell(PAPER["table6"], "R2-D2-C", "MAML").numbers[0]
    assert adapted.measurement.head == "fine_tune" and adapted.measurement.shots == 5
    assert [trial.rate for trial in adapted.measurement.trials] == [0.003, 0.01, 0.03, 0.1]
    assert str(adapted.run) == "mini_imagenet/classical@r2d2/seed-0"


def test_networks_are_fine_tuned_where_every_method_has_the_seed():
    """At the scale cifar_fs classical training has six seeds and the meta-learners one; other heads cost little."""
    scale = scales.load("cifar_fs")
    for name in ("table1", "table5", "table6"):
        (exhibit,) = report.exhibits(scale, scale.seeds, (name,))
        wanted = [(run.seed, each) for run, each in exhibit.wanted() if run.training == "classical@resnet12"]
        adapted = {seed for seed, each in wanted if isinstance(each, Tuned) or each.head == "fine_tune"}
        assert adapted == {0}
        assert {seed for seed, _ in wanted} == ({0} if name == "table5" else set(range(6)))


def test_table3_evaluates_r2d2_by_its_own_ridge_and_the_others_by_an_svm():
    first = PAPER["table3"].cells[0]
    assert first.row == ("R2-D2", "R2-D2") and first.numbers[0].measurement.head == "ridge"
    number = cell(PAPER["table3"], "Classical w/ R_HV", "ResNet-12", "CIFAR-FS", "5-shot").numbers[0]
    assert number.measurement.head == "svm" and number.run.coefficient == 0.05


def test_table4_shows_the_published_beside_training_classes():
    found = cell(PAPER["table4"], "MAML-5", "training classes", "R_FC")
    assert found.published.mean == 3.7044 and found.numbers[0].measurement == Separation("train", 10000)
    assert found.numbers[0].run.training == "maml_5@conv4"
    assert cell(PAPER["table4"], "MAML-5", "new classes", "R_FC").published is None


def test_table7_sets_each_epoch_against_a_classical_one_round_by_round(tmp_path):
    there, column = workspace(tmp_path), "one epoch, times classical"
    (table7,) = report.exhibits(SCALE, (0,), ("table7",))
    timing = table7.cells[0].numbers[0].measurement
    seconds = {"r2d2@r2d2": [6.0, 2.0, 4.0], "classical@r2d2": [1.0, 2.0, 1.0]}
    times = {str(run): {"steps_per_epoch": 200 if "r2d2@" in str(run) else 100, "epochs": 3,
                        "seconds": seconds.get(run.training, [1.0] * 3)} for run in timing.runs}
    (tmp_path / "toy").mkdir()
    write_json(tmp_path / "toy" / "timing@r2d2.json", {
        "runs": [str(run) for run in timing.runs], "rounds": 3, "device": "CPU", "times": times})
    ratio, total = (next(c for c in table7.cells if c.row[0] == "R2-D2" and c.column[-1] == name)
                    for name in (column, "all epochs, s"))
    # Twice as many steps an epoch, and a step takes 6, 1 and 4 times as long: 12, 2, 8
    assert ratio.numbers[0].of(there).values.tolist() == [12.0, 2.0, 8.0]
    assert ratio.published.mean == 48  # 16 minutes by 20 seconds
    assert total.numbers[0].of(there).mean == 2400  # 4 * 200 * 3
    assert not [c for c in table7.cells if c.row[0] == "Classical" and c.column[-1] == column]


def test_table8_trains_each_coefficient():
    found = cell(PAPER["table8"], "ResNet-12", "R_HV", "0.02", "NN", "CIFAR-FS", "5-shot")
    assert found.published.mean == 86.37 and found.numbers[0].run.coefficient == 0.02
    assert found.numbers[0].measurement.head == "linear"


def test_table9_begins_with_reptile_and_adds_coefficients_of_ones_own():
    first = cell(DESK["table9"], "0 (Reptile)", "1-shot")
    assert first.published.mean == 49.97 and first.numbers[0].run.training == "reptile@conv4"
    assert cell(DESK["table9"], "50", "1-shot").published is None
    assert cell(DESK["table9"], "5e-05", "5-shot").published.mean == 68.02


def test_figure3_shows_how_far_weights_travel_at_other_coefficients_too():
    rows = {cell.row[0]: [number.run.coefficient for number in cell.numbers] for cell in DESK["figure3"].cells}
    assert rows == {"Reptile": [None] * 2, "weight clustering": [5e-5] * 2, "weight clustering, 0.5": [0.5],
                    "weight clustering, 5": [5.0], "weight clustering, 50": [50.0]}


def test_a_desk_table_has_a_number_of_every_seed_and_nothing_of_a_dataset_it_lacks():
    classical = cell(DESK["table3"], "R2-D2 (here half its width)", "Classical", "1-shot")
    assert {number.run.seed for number in classical.numbers} == {0, 1}
    assert not any("CIFAR-FS" in found.column for found in DESK["table3"].cells)


def test_claims_set_the_right_sides_against_each_other():
    (table1,) = PAPER["table1"].claims
    assert len(table1.comparisons) == 8
    for comparison in table1.comparisons:
        assert comparison.left.row[0].endswith("-M") and comparison.right.row[0].endswith("-C")
        assert comparison.left.column == comparison.right.column and comparison.sign == 1
    for claim in PAPER["table3"].claims[:2]:
        assert len(claim.comparisons) == 8
        for left, right in ((comparison.left, comparison.right) for comparison in claim.comparisons):
            assert left.row[0].startswith("Classical w/") and right.row[0] == "Classical"
            assert (left.column, left.row[1]) == (right.column, right.row[1])
    assert {c.sign for c in PAPER["table2"].claims[0].comparisons} == {-1}
    assert {c.sign for c in PAPER["table4"].claims[0].comparisons} == {1}
    assert {c.at_most for c in PAPER["table7"].claims[0].comparisons} == {1.1}


def test_the_claims_of_the_paper_are_all_there():
    texts = " ".join(claim.text for exhibit in PAPER.values() for claim in exhibit.claims)
    for words in ("beats the classical one", "lower r_fc", "MAML's features separate", "R_FC raises", "R_HV raises",
                  "costs nearly", "more accurate than Reptile", "travel less"):
        assert words in texts


PENALTIES = ("R_FC", "R_HV", "weight clustering")


@pytest.mark.parametrize("exhibits", [PAPER, DESK], ids=["paper", "desk"])
def test_wherever_a_coefficient_is_printed_its_form_is(exhibits):
    forms = {"whole batch, as printed", "by pairs", "as printed", "squared", "mean loss", "summed loss"}
    for exhibit in exhibits.values():
        for found in exhibit.cells:
            coefficients = {number.run.coefficient for number in found.numbers} - {None}
            text = " ".join((*found.row, *exhibit.notes))
            if any(f"{coefficient:g}" in text for coefficient in coefficients):
                assert any(form in text for form in forms), (exhibit.name, found.row)
    for name in ("table3", "table5", "figure3"):  # where rows name the method alone, the caption has its coefficient
        assert any(form in " ".join(exhibits[name].notes) for form in forms)


def test_table8_names_the_form_in_every_row():
    assert {found.row[3] for found in DESK["table8"].cells if found.row[1] == "R_FC"} == {"by pairs"}
    assert {found.row[3] for found in PAPER["table8"].cells if found.row[1] == "R_FC"} == {"whole batch, as printed"}
    assert {found.row[3] for found in DESK["table8"].cells if found.row[1] == "none"} == {"–"}
