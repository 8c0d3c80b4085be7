"""Shows the metrics of a suite in a table with chance and definitions, and writes the metrics of its classes."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from patchword.files.atomic_write import atomic_write
from patchword.files.csv_cell import csv_cell
from patchword.files.printable import printable
from patchword.report.definition import flatten
from patchword.suites.base import Suite


def describe(suite: Suite) -> dict[str, Any]:
    """The data set, the options that change what is measured, and all definitions, as `results.json` stores them."""
    return {"data_set": suite.data_set, "protocol": suite.protocol(), "definitions": suite.definitions}


def suite_table(suite: Suite, metrics: dict[str, float]) -> Group:
    """A table with one row for each metric in `suite.definitions`; all other numbers are counts, by group, on one line.

    The names in `metrics` do not contain the name of the suite.
    """
    title = Text(f"\n{suite.key}", style="bold") + Text(f": {printable(suite.data_set)}", style="not bold")
    options = ", ".join(f"{name}: {value}" for name, value in flatten(suite.protocol()).items() if value is not None)
    rows = [name for name in metrics if name in suite.definitions]
    baselines = {"chance_": "chance"}
    if any(name.startswith("class_prior_") for name in metrics):
        baselines["class_prior_"] = "class mean map"
    counts = [name for name in metrics if name not in rows and not name.rpartition("/")[2].startswith((*baselines,))]
    table = Table(Column(overflow="fold"), "value", *baselines.values(), "what it is")
    for name in rows:
        group, slash, last = name.rpartition("/")
        found = [metrics.get(f"{group}{slash}{baseline}{last}") for baseline in baselines]
        dim = (*("" if value is None else f"{value:.4f}" for value in found), suite.definitions[name])
        table.add_row(name, f"{metrics[name]:.4f}", *(Text(text, style="dim") for text in dim))
    counted = _counted({name: metrics[name] for name in counts})
    return Group(title, Text(printable(options, 2000), style="dim"), Text(counted), table)


def _counted(counts: dict[str, float]) -> str:
    """Counts on one line. Each group, such as a category of questions, has its name if there are several groups."""
    groups: dict[str, list[str]] = {}
    for name, value in counts.items():
        group, _, last = name.rpartition("/")
        groups.setdefault(group, []).append(f"{value:.0f} {last.replace('_', ' ')}")
    named = {group: f"{group}: " if group and len(groups) > 1 else "" for group in groups}
    return "; ".join(named[group] + ", ".join(parts) for group, parts in groups.items())


def write_classes(suite: Suite, folder: Path) -> Path:
    """Write `<key>_classes.csv` to `folder` with one line per class of a measured suite, and return its path."""
    path = folder / f"{suite.key}_classes.csv"
    with atomic_write(path) as file:
        table = csv.DictWriter(file, [*suite.per_class[0]], lineterminator="\n")
        table.writeheader()
        table.writerows({name: csv_cell(value) for name, value in row.items()} for row in suite.per_class)
    return path
