"""The paper's numbers against a second transcription by another hand, and against the paper's own layout."""

import csv
import pathlib
import re

import pytest

from tf_unravel.reproduction.exhibits.published import MARKS, TABLES, Copied, Copied95, Value

CELLS = {"table1": 4 * 4, "table2": 8 * 2, "table3": 8 * 4, "table4": 3 * 2, "table5": 4 * 2, "table6": 4 * 4}
CELLS |= {"table7": 8 * 2 * 2, "table8": 24 * 4, "table9": 8 * 2}
WITHOUT_ERRORS = {"table2", "table4", "table7"}


def label(text: str) -> str | float:
    if re.fullmatch(r"\d-shot", text):
        return int(text[0])
    return float(text) if re.fullmatch(r"\d+(\.\d+)?(e-\d)?", text) else text


def seconds(text: str) -> Value:
    number, unit = re.fullmatch(r"([\d.]+)([smh])", text).groups()
    return Value(float(number) * 60 ** "smh".index(unit))


def read_again() -> dict[str, dict[tuple, Value]]:
    tables = {}
    with (pathlib.Path(__file__).parent / "published_again.csv").open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            key = tuple(map(label, (line["row"] + "|" + line["column"]).split("|")))
            if line["table"] == "table7":
                cells = {
                    key + (name,): seconds(x)
                    for name, x in zip(("epoch", "total"), line["printed"].split("/"), strict=True)
                }
            else:
                cells = {key: Value(*map(float, line["printed"].split(" ± ")))}
            table = tables.setdefault(line["table"], {})
            assert not table.keys() & cells.keys(), f"twice in the file: {line}"
            table |= cells
    return tables


def test_both_transcriptions_hold_the_same_tables():
    assert read_again().keys() == TABLES.keys() == CELLS.keys()


@pytest.mark.parametrize("name", CELLS)
def test_every_cell_is_the_same_in_both_transcriptions(name):
    first, again = TABLES[name], read_again()[name]
    assert first.keys() - again.keys() == set()
    assert again.keys() - first.keys() == set()
    assert {key: (value, again[key]) for key, value in first.items() if value != pytest.approx(again[key])} == {}


@pytest.mark.parametrize("name", CELLS)
def test_tables_have_as_many_cells_as_on_the_page(name):
    assert len(TABLES[name]) == CELLS[name]


@pytest.mark.parametrize("name", CELLS)
def test_accuracies_and_only_they_have_errors(name):
    for key, value in TABLES[name].items():
        if name in WITHOUT_ERRORS:
            assert value.error is None, key
        else:
            assert 20 < value.mean < 100 and value.error > 0, key


def test_times_are_in_seconds():
    assert TABLES["table7"]["R2-D2", "R2-D2", "mini-ImageNet", "epoch"] == Value(960)
    assert TABLES["table7"]["R2-D2", "R2-D2", "mini-ImageNet", "total"] == Value(60480)
    assert TABLES["table7"]["R2-D2", "R2-D2", "CIFAR-FS", "epoch"] == Value(44)


@pytest.mark.parametrize("row", [k[:-1] for t in ("table2", "table4") for k in TABLES[t] if k[-1] == "R_FC"])
def test_the_two_measures_of_separation_agree(row):
    """Both measures follow one ratio x, the scatter within classes over the squared distance between them.

    R_FC ~ 4x / (1 + x) and R_HV ~ 4x / (1 + 2x), hence R_HV ~ 4 R_FC / (4 + R_FC).
    """
    table = TABLES["table2" if len(row) == 2 else "table4"]
    r_fc, r_hv = table[(*row, "R_FC")].mean, table[(*row, "R_HV")].mean
    assert r_hv == pytest.approx(4 * r_fc / (4 + r_fc), rel=0.065)


def test_copied_intervals_are_marked_wherever_they_stand():
    marked = {(name, *key[:-1]) for name, table in TABLES.items() for key, value in table.items()
              if isinstance(value, Copied95)}
    assert marked == {("table5", "FOMAML"), ("table5", "Reptile"), ("table9", 0.0)}
    of_r2d2 = {value for table in TABLES.values() for value in table.values() if isinstance(value, Copied)}
    assert of_r2d2 == {value for key, value in TABLES["table3"].items() if key[0] == "R2-D2"}
    assert TABLES["table1"]["R2-D2-M", "SVM"].mark == TABLES["table6"]["R2-D2-M", "SVM"].mark == Copied(0.0).mark
    assert {value.mark for table in TABLES.values() for value in table.values()} == {"", *MARKS}


def test_a_standard_error_is_one_whatever_is_printed():
    assert Value(50.0, 0.3).standard_error == 0.3 and Value(1.29).standard_error is None
    assert Copied95(48.07, 1.75).standard_error == pytest.approx(1.75 / 1.96)
