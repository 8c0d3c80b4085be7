"""What a suite measured, as a table: each number beside chance and its definition; and its classes, as a file."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from patchword.report.definition import flatten
from patchword.suites.base import Suite


def describe(suite: Suite) -> dict[str, Any]:
    """Data set, options that change what is measured, and the definition of each number: what results.json says."""
    return {"data_set": suite.data_set, "protocol": suite.protocol(), "definitions": suite.definitions}


def suite_table(suite: Suite, metrics: dict[str, float]) -> Group:
    """A row for each number that `suite.definitions` names; numbers that it does not name are counts, on one line.

    Args:
        suite: The suite.
        metrics: The numbers by name, without that of the suite before them.
    """
    title = Text(f"\n{suite.key}", style="bold") + Text(f": {suite.data_set}", style="not bold")
    options = ", ".join(f"{name}: {value}" for name, value in flatten(suite.protocol()).items() if value is not None)
    rows = [name for name in metrics if name in suite.definitions]
    counts = [name for name in metrics if name not in rows and not _is_chance(name)]
    table = Table(Column(overflow="fold"), "value", "chance", "what it is")
    for name in rows:
        group, _, last = name.rpartition("/")
        chance = metrics.get(f"{group}/chance_{last}" if group else f"chance_{last}")
        shown = "" if chance is None else f"{chance:.4f}"
        table.add_row(
            name, f"{metrics[name]:.4f}", Text(shown, style="dim"), Text(suite.definitions[name], style="dim")
        )
    counted = ", ".join(f"{metrics[name]:.0f} {name.rpartition('/')[2].replace('_', ' ')}" for name in counts)
    return Group(title, Text(options, style="dim"), Text(counted), table)


def write_classes(suite: Suite, folder: Path) -> Path:
    """The numbers of each class as `<key>_classes.csv` in `folder`, a line for each; returns the file's path.

    Args:
        suite: A suite that has been measured and has classes.
        folder: Where `results.json` is.
    """
    path = folder / f"{suite.key}_classes.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, [*suite.per_class[0]], lineterminator="\n")
        table.writeheader()
        table.writerows(suite.per_class)
    return path


def _is_chance(name: str) -> bool:
    return name.rpartition("/")[2].startswith("chance_")
