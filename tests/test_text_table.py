"""Text tables: aligned, nothing after the last cell, a rule as long as the heading."""

from tf_unravel.text_table import text_table

ROWS = [("head", "accuracy"), ("ridge", ""), ("a", "61.2 ± 0.4 x")]


def test_columns_are_aligned():
    assert text_table(ROWS).splitlines() == ["head   accuracy", "---------------", "ridge", "a      61.2 ± 0.4 x"]
    assert text_table(ROWS, ruled=False).splitlines() == ["head   accuracy", "ridge", "a      61.2 ± 0.4 x"]
