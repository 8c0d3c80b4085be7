"""The content of a report, independent of its format."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from patchword.report import cost, curves, removal, style
from patchword.report.comparison import Comparison
from patchword.report.definition import flatten
from patchword.report.frames import TRAINING, by_seed, summary
from patchword.report.names import Column, qualities
from patchword.report.pairs import Numbers, Verdict, gain, pair_table, verdict
from patchword.report.run import NOT_RECORDED, as_dict
from patchword.report.statistics import discoveries
from patchword.report.tables import BETTER, WORSE, Table, columns_of, cost_table, split_tables

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
    """A plot as a PNG file for white paper, and as SVG files for light and dark screens.

    The name is the file name without prefix and suffix. The section of the report is `curves` or `cost`.
    """

    name: str
    title: str
    section: str
    png: bytes
    light: bytes
    dark: bytes


@dataclass(frozen=True)
class Report:
    """The content of a report.

    Attributes:
        splits: The tables of each test split.
        verdicts: How all variants compare with the best one, for each metric of the first table of each split.
        pairs: The differences between any two variants in these metrics; see `pair_table`.
        cost: The table of training costs; None if no run recorded them.
        measured: What was measured, as names and values.
        counts: One row per split: its name, and the numbers of images, captions and so on in it.
        warning: A sentence about the number of comparisons and how many intervals exclude 0 by chance.
    """

    title: str
    comparison: Comparison
    summary: pd.DataFrame
    splits: dict[str, list[Table]]
    verdicts: dict[str, list[Verdict]]
    pairs: pd.DataFrame
    cost: Table | None
    plots: list[Plot]
    measured: dict[str, str]
    counts: list[dict[str, str]]
    warning: str
    notes: list[str]


def make(comparison: Comparison, title: str | None = None) -> Report:
    """Return the content of a report, except for the gallery, whose pictures depend on the format."""
    found, numbers = summary(comparison), by_seed(comparison)
    columns = {split: columns_of(comparison, found, split) for split in _splits(comparison)}
    found["kept"] = _kept(found, columns)
    verdicts = {split: _verdicts(comparison, numbers, split, tables) for split, tables in columns.items()}
    splits = {split: split_tables(comparison, found, split, columns[split], verdicts[split]) for split in columns}
    first = {split: next(iter(tables.values())) for split, tables in columns.items() if tables}
    pairs = pair_table(comparison, numbers, first)
    notes = [*comparison.notes, *filter(None, [gain(pairs)])]
    notes += [f"The split {split} has no table: no number is finite." for split, own in splits.items() if not own]
    plots = [
        *_curves(comparison, notes),
        *_removals(comparison, [*splits]),
        *_costs(comparison, next(iter(splits)), notes),
    ]
    return Report(
        title=title or comparison.name,
        comparison=comparison,
        summary=found,
        splits=splits,
        verdicts={
            split: [verdicts[split][column.metric] for column in own if column.metric in verdicts[split]]
            for split, own in first.items()
        },
        pairs=pairs,
        cost=cost_table(comparison, found),
        plots=plots,
        measured=_measured(comparison),
        counts=_counts(comparison, list(splits)),
        warning=_warning(comparison, found, splits),
        notes=notes,
    )


def _splits(comparison: Comparison) -> list[str]:
    """Return the test splits, with `test` first."""
    found = dict.fromkeys(name.partition("/")[0] for run in comparison.runs for name in run.metrics)
    return sorted(found, key=lambda split: split != "test")


def _warning(comparison: Comparison, found: pd.DataFrame, splits: dict[str, list[Table]]) -> str:
    if comparison.baseline is None:
        why = "because it has no runs of a baseline (--baseline NAME sets one)"
        return f"The report has no differences and no intervals, {why}."
    # The map metrics of the first table are also in the tables of their sources, but each number counts once.
    shown = {
        (split, row.name, column.metric): cell.bounds
        for split, tables in splits.items()
        for table in tables
        for row in table.rows
        for column, cell in zip(table.columns, row.cells, strict=True)
        if cell.bounds is not None
    }
    if not shown:
        return f"The report has no intervals, because no difference from {comparison.baseline} has two paired seeds."
    without_zero = sum(low > 0 or high < 0 for _, low, high in shown.values())
    every = found[found["split"] != TRAINING]["low"].notna().sum()
    return (
        f"The tables contain {len(shown):,} comparisons with {comparison.baseline}, and the list of all numbers "
        f"contains {every:,}. In the tables, {without_zero:,} intervals exclude 0, and {found['kept'].sum():,} "
        f"differences hold at a false discovery rate of 5 % ({BETTER} better, {WORSE} worse). The intervals are not "
        "corrected for multiple comparisons: about one in twenty 95 % intervals excludes 0 by chance alone."
    )


def _verdicts(
    comparison: Comparison, numbers: Numbers, split: str, tables: dict[str, list[Column]]
) -> dict[str, Verdict]:
    """Return the verdict of each metric. A metric that is in several tables has its title in the first of them."""
    first: dict[str, Column] = {}
    for column in (column for own in tables.values() for column in own):
        first.setdefault(column.metric, column)
    found = {metric: verdict(comparison, numbers, split, column) for metric, column in first.items()}
    return {metric: one for metric, one in found.items() if one is not None}


def _kept(found: pd.DataFrame, columns: dict[str, dict[str, list[Column]]]) -> pd.Series:
    """Return which differences from the baseline hold among all comparisons of the tables (Benjamini-Hochberg)."""
    import pandas as pd

    shown = {(split, column.metric) for split, own in columns.items() for each in own.values() for column in each}
    in_tables = [key in shown for key in zip(found["split"], found["metric"], strict=True)]
    return pd.Series(discoveries(found["p"].where(in_tables).tolist()), index=found.index)


def _measured(comparison: Comparison) -> dict[str, str]:
    """Return the definition that all runs share; for runs of older versions, what they recorded about their data."""
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
    """Return the data set and options of each evaluation suite, followed by the definitions of its numbers."""
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
    for quality in qualities(comparison.query):
        found = curves.curve_table(comparison, quality)
        if not found.empty:
            drawn |= set(found["variant"])
            title = f"Validation {quality.title}"
            draw = partial(curves.draw, found, title, comparison.variants)
            made.append(_plot(f"curves_{quality.key}", title, "curves", draw))
    notes += _missing("have no learning curve (no metrics.csv with these metrics was found)", drawn, comparison)
    return made


def _removals(comparison: Comparison, splits: Sequence[str]) -> list[Plot]:
    """Return the curves of insertion and deletion of each variant that measured them."""
    made: list[Plot] = []
    for split in splits:
        found = removal.curve_table(comparison, split)
        for (variant, fill), own in found.groupby(["variant", "fill"], sort=False):
            for process in removal.PROCESSES:
                title = f"{process.capitalize()} on {split}, {fill}: {variant}"
                draw = partial(removal.draw, own, process, title)
                made.append(_plot(f"removal_{len(made)}", title, "curves", draw))
    return made


def _costs(comparison: Comparison, split: str, notes: list[str]) -> list[Plot]:
    made, drawn = [], set()
    for quality in qualities(comparison.query):
        found = cost.points(comparison, quality, split)
        if found:
            drawn |= {point.variant for point in found}
            title = quality.title[0].upper() + quality.title[1:]
            draw = partial(cost.draw, found, title, comparison)
            title = f"{title} on {split}, plotted against the cost of a step"
            made.append(_plot(f"cost_{quality.key}", title, "cost", draw))
    notes += _missing(f"are not in the cost plots (step time {NOT_RECORDED})", drawn, comparison)
    return made


def _missing(what: str, drawn: set[str], comparison: Comparison) -> list[str]:
    """Return a note if some variants were not drawn; `what` is its predicate."""
    without = [variant for variant in comparison.variants if variant not in drawn]
    return [f"These variants {what}: {', '.join(without) if drawn else 'all variants'}."] if without else []


def _plot(name: str, title: str, section: str, draw: Callable[[style.Ink], Figure]) -> Plot:
    light, dark = draw(style.LIGHT), draw(style.DARK)
    return Plot(name, title, section, style.png(light), style.svg(light), style.svg(dark))
