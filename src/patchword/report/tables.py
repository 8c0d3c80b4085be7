"""The tables of a report, as values that every format writes in its own way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite, isnan
from typing import TYPE_CHECKING, Any

from patchword.report import names
from patchword.report.comparison import Comparison
from patchword.report.frames import TRAINING
from patchword.report.names import Column
from patchword.report.run import NOT_RECORDED, Run

if TYPE_CHECKING:
    import pandas as pd

EXCLUDES_ZERO = "•"
ONE_PAIR = "†"
NOT_PAIRED = "‡"
MINUS = "−"


@dataclass(frozen=True)
class Cell:
    """A number of a table, as it is shown.

    Attributes:
        value: The mean; empty where nothing was measured.
        spread: The standard deviation over seeds, where there are several.
        difference: To the baseline.
        interval: Of the difference.
        bounds: The difference and the ends of its interval, as numbers, to be drawn.
        mark: One of the marks above, or none.
        order: What its column is sorted by.
        seeds: Seed, number and config hash of each run.
    """

    value: str = ""
    spread: str = ""
    difference: str = ""
    interval: str = ""
    bounds: tuple[float, float, float] | None = None
    mark: str = ""
    order: float = float("nan")
    seeds: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True)
class Row:
    """A variant, or chance or the centre.

    Attributes:
        name: Its name.
        count: How many seeds it has.
        cells: A cell for each column.
        is_baseline: Whether others are compared with it.
    """

    name: str
    count: int
    cells: tuple[Cell, ...]
    is_baseline: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: Its title.
        columns: The metrics.
        rows: A row for each variant.
        references: Chance and centre.
        notes: What its marks mean, and what is missing.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    references: tuple[Row, ...] = ()
    notes: tuple[str, ...] = field(default=())


def split_tables(comparison: Comparison, found: pd.DataFrame, split: str) -> list[Table]:
    """The tables of one split: the headline, then the maps of each source.

    Args:
        comparison: The runs.
        found: Their `summary`.
        split: The split.
    """
    every = {"Retrieval, hard negatives and maps": names.headline(comparison.query)}
    for source, words in names.SOURCES.items():
        title = f"Maps: {words}" if source != "align" else "Maps: the objective's own"
        every[title] = names.grounding(comparison.query, source)
    shown = {column.metric for columns in every.values() for column in columns}
    own = {name: text for name, text in comparison.definitions(split).items() if name not in shown}
    if own:
        every["As the suite defines it"] = names.of_suite(own)
    made = [_quality(comparison, found, split, title, columns) for title, columns in every.items()]
    return [table for table in made if table.columns]


def cost_table(comparison: Comparison, found: pd.DataFrame) -> Table | None:
    """What training cost; None where no run has recorded it."""
    rows = found[found["split"] == TRAINING]
    if rows.empty:
        return None
    of_what = {str(run.trained.get("memory_of")) for run in comparison.runs if "peak_memory" in run.cost}
    columns = [
        Column("step_seconds", "ms per step", "wall time"),
        Column("step_cpu_seconds", "ms per step", "of the CPUs"),
        Column("peak_memory", "peak GiB", f"of the {' or '.join(sorted(of_what))}"),
        Column("seconds", "seconds", "of the training"),
    ]
    scales = {"step_seconds": 1e3, "step_cpu_seconds": 1e3, "peak_memory": 2**-30, "seconds": 1.0}
    by_key = _by_key(rows)
    columns = [column for column in columns if any(key[2] == column.metric for key in by_key)]
    made = []
    for variant in comparison.variants:
        cells = []
        for column in columns:
            scale = scales[column.metric]
            row = by_key.get((variant, TRAINING, column.metric))
            base = by_key.get((str(comparison.baseline), TRAINING, column.metric))
            seeds = _seeds(comparison.of(variant), lambda run, c=column: run.cost.get(c.metric), scale, short)
            if row is None:
                cells.append(Cell(NOT_RECORDED))
                continue
            relative = f"{row['mean'] / base['mean']:.2f} ×" if base is not None and base["mean"] else ""
            spread = f"±{short(row['sd'] * scale, row['mean'] * scale)}" if isfinite(row["sd"]) else ""
            cells.append(Cell(short(row["mean"] * scale), spread, relative, order=row["mean"], seeds=seeds))
        runs = comparison.of(variant)
        made.append(Row(variant, len(runs), tuple(cells), variant == comparison.baseline))
    return Table("Cost", tuple(columns), tuple(made), (), _of_cost(comparison))


def short(number: float, like: float | None = None) -> str:
    """About three digits of a number that is neither tiny nor huge, or as many places as another's."""
    if not isfinite(number):
        return "NaN"
    size = abs(number if like is None else like)
    return f"{number:,.{0 if size >= 100 else 1 if size >= 10 else 2}f}"


def signed(number: float) -> str:
    """Three places with a sign; a zero has none."""
    shown = f"{number:+.3f}"
    return "0.000" if float(shown) == 0 else shown.replace("-", MINUS)


def _quality(comparison: Comparison, found: pd.DataFrame, split: str, title: str, columns: Sequence[Column]) -> Table:
    by_key = _by_key(found[found["split"] == split])
    measured = {key[2] for key, row in by_key.items() if not isnan(row["mean"]) or row["count"] > 0}
    empty = {m for m in measured if all(isnan(row["mean"]) for key, row in by_key.items() if key[2] == m)}
    columns = [column for column in columns if column.metric in measured - empty]
    rows = []
    reasons: dict[str, list[str]] = {}
    few: dict[str, str] = {}
    for variant in comparison.variants:
        cells = []
        for column in columns:
            row = by_key.get((variant, split, column.metric))
            cells.append(_cell(comparison, split, column, variant, row))
            if row is not None and row["why_none"]:
                reasons.setdefault(row["why_none"], []).append(variant)
            elif row is not None and isfinite(row["low"]) and row["pairs"] < row["count"]:
                few[variant] = f"{row['pairs']} of {row['count']} seeds of {variant}"
        rows.append(Row(variant, len(comparison.of(variant)), tuple(cells), variant == comparison.baseline))
    return Table(
        title,
        tuple(columns),
        tuple(rows),
        tuple(found for kind in names.REFERENCES if (found := _reference(by_key, columns, kind)) is not None),
        tuple(_explain(rows, comparison.baseline, reasons, list(few.values()))),
    )


def _cell(comparison: Comparison, split: str, column: Column, variant: str, row: dict[str, Any] | None) -> Cell:
    if row is None:
        return Cell("not measured")
    runs = comparison.of(variant)
    few = f" ({row['count']})" if row["count"] != len(runs) else ""
    mark, interval, bounds = "", "", None
    if row["excludes_zero"]:
        mark = EXCLUDES_ZERO
    elif row["why_none"].startswith("not paired"):
        mark = NOT_PAIRED
    elif row["why_none"]:
        mark = ONE_PAIR
    if isfinite(row["low"]):
        interval = f"[{signed(row['low'])}, {signed(row['high'])}]"
        bounds = (row["difference"], row["low"], row["high"])
    return Cell(
        value=_fraction(row["mean"]),
        spread=(f"±{row['sd']:.3f}" if isfinite(row["sd"]) else "") + few,
        difference=signed(row["difference"]) if isfinite(row["difference"]) else "",
        interval=interval,
        bounds=bounds,
        mark=mark,
        order=row["mean"],
        seeds=_seeds(runs, lambda run: run.metrics.get(f"{split}/{column.metric}"), 1.0, lambda x: f"{x:.4f}"),
    )


def _seeds(runs: Sequence[Run], number: Any, scale: float, write: Any) -> tuple[tuple[str, str, str], ...]:
    found = []
    for run in runs:
        value = number(run)
        seed = "unknown" if run.seed is None else str(run.seed)
        shown = NOT_RECORDED if value is None else write(value * scale)
        found.append((seed, shown, run.provenance["config_hash"]))
    return tuple(found)


def _fraction(number: float) -> str:
    return f"{number:.3f}".replace("-", MINUS) if isfinite(number) else "NaN"


def _reference(by_key: dict[tuple[str, str, str], dict[str, Any]], columns: Sequence[Column], kind: str) -> Row | None:
    """What a guess, or maps that know the centre only, reach: the same for every run, but for rounding."""
    cells = []
    for column in columns:
        metric = column.chance if kind == "chance" else column.centre
        means = [row["mean"] for key, row in by_key.items() if key[2] == metric and isfinite(row["mean"])]
        mean = sum(means) / len(means) if means else float("nan")
        cells.append(Cell(_fraction(mean) if means else "", order=mean))
    return Row(kind, 0, tuple(cells)) if any(cell.value for cell in cells) else None


def _explain(rows: Sequence[Row], baseline: str | None, reasons: dict[str, list[str]], few: list[str]) -> list[str]:
    marks = {cell.mark for row in rows for cell in row.cells}
    notes = []
    if baseline is not None and any(cell.interval for row in rows for cell in row.cells):
        notes.append(
            f"Second line: the mean paired difference to {baseline} over seeds, with its 95 % confidence interval "
            "(Student's t)."
        )
    if EXCLUDES_ZERO in marks:
        notes.append(f"{EXCLUDES_ZERO} The interval excludes 0; no more than that.")
    if few:
        notes.append(f"Paired are {', '.join(few)}.")
    for why, variants in reasons.items():
        mark = NOT_PAIRED if why.startswith("not paired") else ONE_PAIR
        what = "the difference of the means" if mark == NOT_PAIRED else "the difference"
        all_others = len(set(variants)) == len(rows) - 1
        whose = "all variants" if all_others else ", ".join(dict.fromkeys(variants))
        notes.append(f"{mark} {what}, without an interval: {why}: {whose}.")
    return notes


def _of_cost(comparison: Comparison) -> tuple[str, ...]:
    notes = [
        "A step's time is the median of the last steps, without waiting for data; that of the CPUs adds up "
        "their threads, and says more where others used them, too. The training's is with validation."
    ]
    if comparison.baseline is not None:
        notes.append(f"× is relative to {comparison.baseline}.")
    hardware = {run.provenance["hardware"] for run in comparison.runs if run.cost}
    if len(hardware) > 1:
        notes.append(
            f"The runs were trained on {len(hardware)} kinds of machines: times cannot be compared across them."
        )
    batches = {run.provenance["batch"] for run in comparison.runs if run.cost}
    if len(batches) > 1:
        notes.append(f"The runs have different batches ({', '.join(sorted(batches))} pairs): so have their steps.")
    return tuple(notes)


def _by_key(found: pd.DataFrame) -> dict[tuple[str, str, str], dict[str, Any]]:
    return {(row["variant"], row["split"], row["metric"]): row for row in found.to_dict("records")}
