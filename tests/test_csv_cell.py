"""Cells of CSV files cannot be formulas of a spreadsheet."""

import pytest

from patchword.files.csv_cell import csv_cell


@pytest.mark.parametrize("value", [1, -1.5, None, True, "a dog", "a=b", "-1.5", "+3", "-1e-5", "-inf", "é犬", ""])
def test_keeps(value):
    """Numbers, numbers as text, and text that does not start like a formula are unchanged."""
    assert csv_cell(value) is value or csv_cell(value) == value


@pytest.mark.parametrize("text", ["=1+1", "+cmd", "-cmd|x", "@SUM(A1)", "\t=1", "\r=1", "-", "=", "-1+1"])
def test_formulas(text):
    """Text that a spreadsheet would compute gets an apostrophe."""
    assert csv_cell(text) == f"'{text}"


def test_names_that_are_not_utf8():
    """File names that are not UTF-8 can be written to a UTF-8 file."""
    assert csv_cell("caf\udce9.png") == "caf\\udce9.png"
