"""Write cells of CSV files that spreadsheets do not interpret as formulas."""

from __future__ import annotations

from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def csv_cell(value: Any) -> Any:
    r"""The content of a CSV cell for a value. Text that a spreadsheet would interpret as a formula is escaped.

    Spreadsheets evaluate cells that begin with `=`, `+`, `-` or `@`. Such text gets an apostrophe as a prefix, unless
    it is a number. Bytes of file names that are not UTF-8 are written as escapes such as `\udce9`.
    """
    if not isinstance(value, str):
        return value
    text = value.encode(errors="backslashreplace").decode()
    return f"'{text}" if text.startswith(_FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
