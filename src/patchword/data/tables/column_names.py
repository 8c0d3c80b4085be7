"""Reads the column names of tables and refuses repeated names.

The readers of tables would silently drop or rename all columns of the same name except one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from patchword.errors import UserError
from patchword.files.printable import printable


def csv_columns(file: str, options: dict[str, Any]) -> list[str]:
    """Return the column names of a CSV file, as pandas calls them.

    Args:
        file: The path or the address of the file.
        options: Options of `pandas.read_csv`.

    Raises:
        UserError: If a name is repeated; the message names the file.
        Exception: If the file cannot be read. Parsers, file systems and networks raise many kinds of errors.
    """
    import fsspec
    import pandas as pd

    with fsspec.open(file, "rb", compression="infer") as stream:
        first = pd.read_csv(stream, header=None, nrows=1, dtype=str, **options)
    names = [*map(str, first.iloc[0])]
    require_unique([name for name in names if name], file)
    return [name or f"Unnamed: {number}" for number, name in enumerate(names)]


def require_unique(names: Sequence[str], file: str) -> None:
    """Require that the table of a file does not have two columns of the same name.

    Raises:
        UserError: If it does.
    """
    repeated = next((name for name, times in Counter(names).items() if times > 1), None)
    if repeated is not None:
        raise UserError(f"{file} has more than one column {printable(repeated, 80)!r}: rename or remove the others")
