"""What a report says, whatever its format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from patchword.report import cost, curves, style
from patchword.report.comparison import Comparison
from patchword.report.definition import flatten
from patchword.report.frames import TRAINING, summary
from patchword.report.run import NOT_RECORDED, as_dict
from patchword.report.tables import Table, cost_table, split_tables

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_COUNTED = {
    "images": "retrieval/images",
    "captions": "retrieval/captions",
    "phrases": "grounding/{query}/align/phrases",
    "hard negatives": "hard_negatives/negatives",
}


@dataclass(frozen=True)
class Plot:
    """A plot, drawn for white paper, and for light and dark screens.

    Attributes:
        name: Of its file, without a suffix.
        title: What it shows.
        section: `curves` or `cost`.
        png: For white paper.
        light: An SVG for light screens.
        dark: An SVG for dark screens.
    """

    name: str
    title: str
    section: str
    png: bytes
    light: bytes
    dark: bytes


@dataclass(frozen=True)
class Report:
    """What is written.

    Attributes:
        title: The title.
        comparison: The runs.
        summary: Their `summary`.
        splits: The tables of each test split.
        cost: What training cost, if that is recorded.
        plots: Learning curves, and cost against quality.
        measured: What was measured, as names and values.
        counts: A row for each split: its name, and how much of what it holds.
        warning: What the marks in the tables mean, all together.
        notes: What a reader must know, besides.
    """

    title: str
    comparison: Comparison
    summary: pd.DataFrame
    splits: dict[str, list[Table]]
    cost: Table | None
    plots: list[Plot]
    measured: dict[str, str]
    counts: list[dict[str, str]]
    warning: str
    notes: list[str]


def make(comparison: Comparison, title: str | None = None) -> Report:
    """Everything but the gallery, whose pictures depend on the format."""
    found = summary(comparison)
    splits = {split: split_tables(comparison, found, split) for split in _splits(comparison)}
    notes = list(comparison.notes)
    plots = [*_curves(comparison, notes), *_costs(comparison, next(iter(splits)), notes)]
    return Report(
        title=title or comparison.name,
        comparison=comparison,
        summary=found,
        splits=splits,
        cost=cost_table(comparison, found),
        plots=plots,
        measured=_measured(comparison),
        counts=_counts(comparison, list(splits)),
        warning=_warning(comparison, found, splits),
        notes=notes,
    )


def _splits(comparison: Comparison) -> list[str]:
    """The test splits, `test` first."""
    found = dict.fromkeys(name.partition("/")[0] for run in comparison.runs for name in run.metrics)
    return sorted(found, key=lambda split: split != "test")


def _warning(comparison: Comparison, found: pd.DataFrame, splits: dict[str, list[Table]]) -> str:
    if comparison.baseline is None:
        return "No baseline is named (--baseline NAME): there are no differences and no intervals here."
    # The headline's maps stand in the tables of their sources, too: a number counts once.
    shown = {
        (split, row.name, column.metric): cell.bounds
        for split, tables in splits.items()
        for table in tables
        for row in table.rows
        for column, cell in zip(table.columns, row.cells, strict=True)
        if cell.bounds is not None
    }
    if not shown:
        return f"There is no interval here: no difference to {comparison.baseline} has two paired seeds."
    without_zero = sum(low > 0 or high < 0 for _, low, high in shown.values())
    every = found[found["split"] != TRAINING]["low"].notna().sum()
    return (
        f"The tables hold {len(shown):,} comparisons with {comparison.baseline}, and the list of all numbers "
        f"{every:,}; {without_zero:,} intervals of the tables exclude 0 (•). Nothing is corrected for so many looks: "
        "of 95 % intervals, about one in twenty excludes 0 by chance alone."
    )


def _measured(comparison: Comparison) -> dict[str, str]:
    """The definition that all runs share; of old runs, what they say of their data."""
    measured = comparison.runs[0].measured
    definition = as_dict(measured.get("definition"))
    if not definition:
        data = str(as_dict(measured.get("data")).get("class_path") or NOT_RECORDED)
        return {"data set": data.rpartition(".")[2], "query": comparison.query, "definition": NOT_RECORDED}
    names = {"metrics": "version of the metrics"}
    settled = {names.get(k, k.replace("_", " ")): v for k, v in definition.items() if k not in ("splits", "suites")}
    return {
        k: v if isinstance(v, str) else " × ".join(map(str, v)) if isinstance(v, list) else json.dumps(v)
        for k, v in settled.items()
    } | _suites(as_dict(definition.get("suites")))


def _suites(suites: dict[str, Any]) -> dict[str, str]:
    """Data set and options of each evaluation suite, then what each of its numbers is."""
    found = {}
    for name, suite in suites.items():
        options = flatten(as_dict(suite.get("protocol")))
        shown = [str(suite.get("data_set")), *(f"{k}: {v}" for k, v in options.items() if v is not None and k)]
        found[name] = ", ".join(shown)
        found |= {f"{name}/{metric}": text for metric, text in as_dict(suite.get("definitions")).items()}
    return found


def _counts(comparison: Comparison, splits: Sequence[str]) -> list[dict[str, str]]:
    run = comparison.runs[0]
    of_splits = as_dict(as_dict(run.measured.get("definition")).get("splits"))
    rows = []
    for split in splits:
        row = {"split": split}
        for words, metric in _COUNTED.items():
            number = run.metrics.get(f"{split}/{metric.format(query=comparison.query)}")
            row[words] = "" if number is None or number != number else f"{number:,.0f}"
        noted = flatten(as_dict(of_splits.get(split)))
        rows.append(row | {k: f"{v:,}" if isinstance(v, int) else str(v) for k, v in noted.items() if k})
    return rows


def _curves(comparison: Comparison, notes: list[str]) -> list[Plot]:
    made, drawn = [], set()
    for curve in curves.kinds(comparison.query):
        found = curves.curve_table(comparison, curve)
        if not found.empty:
            drawn |= set(found["variant"])
            figures = [curves.draw(found, curve, comparison.variants, ink) for ink in (style.LIGHT, style.DARK)]
            made.append(_plot(f"curves_{curve.key}", curve.title, "curves", figures))
    notes += _missing("learning curve (no metrics.csv of the training with what is drawn)", drawn, comparison)
    return made


def _costs(comparison: Comparison, split: str, notes: list[str]) -> list[Plot]:
    made, drawn = [], set()
    for quality in cost.kinds(comparison.query):
        found = cost.points(comparison, quality, split)
        if found:
            drawn |= {point.variant for point in found}
            title = f"{quality.title} on {split}, against the cost of a step"
            figures = [cost.draw(found, quality, comparison, ink) for ink in (style.LIGHT, style.DARK)]
            made.append(_plot(f"cost_{quality.key}", title, "cost", figures))
    notes += _missing(f"place in the plots of cost (time of a step {NOT_RECORDED})", drawn, comparison)
    return made


def _missing(what: str, drawn: set[str], comparison: Comparison) -> list[str]:
    """A note, if there are variants without it."""
    without = [variant for variant in comparison.variants if variant not in drawn]
    return [f"No {what}: {', '.join(without) if drawn else 'all variants'}."] if without else []


def _plot(name: str, title: str, section: str, figures: Sequence[Figure]) -> Plot:
    light, dark = figures
    return Plot(name, title, section, style.png(light), style.svg(light), style.svg(dark))
