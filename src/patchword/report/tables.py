"""The tables of a report, independent of the output format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

from patchword.report import names
from patchword.report.comparison import Comparison
from patchword.report.frames import TRAINING
from patchword.report.names import Column
from patchword.report.pairs import Verdict
from patchword.report.run import NOT_RECORDED, Run
from patchword.report.statistics import MINUS, signed

if TYPE_CHECKING:
    import pandas as pd

BETTER, WORSE = "▲", "▼"
EXCLUDES_ZERO = "•"
ONE_PAIR = "†"
NOT_PAIRED = "‡"


@dataclass(frozen=True)
class Cell:
    """A cell of a table, formatted as text.

    Attributes:
        value: The mean over seeds; empty if there is no number.
        spread: The standard deviation over seeds; empty for one seed.
        difference: The difference from the baseline.
        interval: The confidence interval of the difference.
        bounds: The difference and the ends of its interval as numbers, for drawing.
        mark: One of the marks above, or empty.
        order: The number that the column is sorted by.
        seeds: The seed, number and config hash of each run.
        best: Whether this is the best mean of the column, or cannot be distinguished from it.
    """

    value: str = ""
    spread: str = ""
    difference: str = ""
    interval: str = ""
    bounds: tuple[float, float, float] | None = None
    mark: str = ""
    order: float = float("nan")
    seeds: tuple[tuple[str, str, str], ...] = ()
    best: bool = False


@dataclass(frozen=True)
class Row:
    """A row of a table: a variant with its number of seeds, or one of the references (chance and the priors)."""

    name: str
    count: int
    cells: tuple[Cell, ...]
    is_baseline: bool = False


@dataclass(frozen=True)
class Table:
    """A table of a report, with one column per metric; the notes explain the marks and missing intervals."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    references: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()


def columns_of(comparison: Comparison, found: pd.DataFrame, split: str) -> dict[str, list[Column]]:
    """Return the columns of the tables of one split by title; `found` is the `summary`.

    The first table has the main metrics. The others have the maps of each source, insertion and deletion, and the
    metrics of a suite. Metrics without a finite number are left out.
    """
    every = {"Retrieval, hard negatives and maps": names.headline(comparison.query)}
    for source, words in names.SOURCES.items():
        title = f"Maps: {words}" if source != "align" else "Maps: the objective's own"
        every[title] = names.grounding(comparison.query, source)
    for fill in ("mean", "blur"):
        every[f"Insertion and deletion: patches removed by {fill}"] = names.removal(comparison.query, fill)
    shown = {column.metric for columns in every.values() for column in columns}
    own = {name: text for name, text in comparison.definitions(split).items() if name not in shown}
    if own:
        every["Metrics of the suite"] = names.of_suite(own)
    rows = found[found["split"] == split]
    finite = set(rows.loc[rows["mean"].notna(), "metric"])
    kept = {title: [column for column in columns if column.metric in finite] for title, columns in every.items()}
    return {title: columns for title, columns in kept.items() if columns}


def split_tables(
    comparison: Comparison,
    found: pd.DataFrame,
    split: str,
    columns: Mapping[str, Sequence[Column]],
    verdicts: Mapping[str, Verdict],
) -> list[Table]:
    """Return the tables of one split.

    Args:
        comparison: The runs.
        found: The `summary`, with a column `kept`: whether a difference holds among all comparisons of the tables.
        split: The split.
        columns: The columns of each table, by its title.
        verdicts: The verdict of each metric, by its name.
    """
    return [_quality(comparison, found, split, title, own, verdicts) for title, own in columns.items()]


def cost_table(comparison: Comparison, found: pd.DataFrame) -> Table | None:
    """Return the table of training costs; None if no run recorded them."""
    rows = found[found["split"] == TRAINING]
    if rows.empty:
        return None
    of_what = {str(run.trained.get("memory_of")) for run in comparison.runs if "peak_memory" in run.cost}
    scales = {
        Column("step_seconds", "ms per step", "wall time"): 1e3,
        Column("step_cpu_seconds", "ms per step", "CPU time"): 1e3,
        Column("peak_memory", "peak GiB", f"of the {' or '.join(sorted(of_what))}"): 2**-30,
        Column("seconds", "seconds", "total training"): 1.0,
    }
    by_key = _by_key(rows)
    columns = [column for column in scales if any(key[2] == column.metric for key in by_key)]
    made = []
    for variant in comparison.variants:
        runs = comparison.of(variant)
        cells = []
        for column in columns:
            scale = scales[column]
            row = by_key.get((variant, TRAINING, column.metric))
            base = by_key.get((str(comparison.baseline), TRAINING, column.metric))
            if row is None:
                cells.append(Cell(NOT_RECORDED))
                continue
            share = row["mean"] / base["mean"] if base is not None and base["mean"] else float("nan")
            relative = f"{share:.2f} ×" if isfinite(share) else ""
            spread = f"±{short(row['sd'] * scale, row['mean'] * scale)}" if isfinite(row["sd"]) else ""
            seeds = _seeds(runs, lambda run, c=column: run.cost.get(c.metric), scale, short)
            cells.append(Cell(short(row["mean"] * scale), spread, relative, order=row["mean"], seeds=seeds))
        made.append(Row(variant, len(runs), tuple(cells), variant == comparison.baseline))
    return Table("Cost", tuple(columns), tuple(made), (), _of_cost(comparison))


def short(number: float, like: float | None = None) -> str:
    """Format a number with about three digits, or with as many decimal places as the number `like`."""
    if not isfinite(number):
        return "NaN"
    size = abs(number if like is None else like)
    return f"{number:,.{0 if size >= 100 else 1 if size >= 10 else 2}f}"


def _quality(
    comparison: Comparison,
    found: pd.DataFrame,
    split: str,
    title: str,
    columns: Sequence[Column],
    verdicts: Mapping[str, Verdict],
) -> Table:
    by_key = _by_key(found[found["split"] == split])
    rows = []
    reasons: dict[str, list[str]] = {}
    few: dict[str, str] = {}
    for variant in comparison.variants:
        cells = []
        for column in columns:
            row = by_key.get((variant, split, column.metric))
            leads = column.metric in verdicts and variant in verdicts[column.metric].leaders
            cells.append(_cell(comparison, split, column, variant, row, leads))
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


def _cell(
    comparison: Comparison, split: str, column: Column, variant: str, row: dict[str, Any] | None, leads: bool
) -> Cell:
    if row is None:
        return Cell("not measured")
    runs = comparison.of(variant)
    few = f" ({row['count']})" if row["count"] != len(runs) else ""
    mark, interval, bounds = "", "", None
    if row["kept"]:
        mark = BETTER if (row["difference"] < 0) == column.lower_is_better else WORSE
    elif row["excludes_zero"]:
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
        best=leads,
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
    """Return the row of chance or a prior, which is the same for every run up to rounding."""
    cells = []
    for column in columns:
        metric = column.references.get(kind)
        means = [row["mean"] for key, row in by_key.items() if key[2] == metric and isfinite(row["mean"])]
        mean = sum(means) / len(means) if means else float("nan")
        cells.append(Cell(_fraction(mean) if means else "", order=mean))
    return Row(kind, 0, tuple(cells)) if any(cell.value for cell in cells) else None


def _explain(rows: Sequence[Row], baseline: str | None, reasons: dict[str, list[str]], few: list[str]) -> list[str]:
    marks = {cell.mark for row in rows for cell in row.cells}
    notes = []
    if baseline is not None and any(cell.interval for row in rows for cell in row.cells):
        notes.append(
            f"The second line of a cell is the mean paired difference from {baseline} over seeds. Intervals are 95 % "
            "confidence intervals of this difference (Student's t)."
        )
    if any(cell.best for row in rows for cell in row.cells):
        notes.append(
            "Bold: the best mean of a column, and the means that cannot be distinguished from it (the interval of the "
            "paired difference includes 0)."
        )
    if {BETTER, WORSE, EXCLUDES_ZERO} & marks:
        notes.append(
            f"{BETTER} better and {WORSE} worse than {baseline}: the difference holds at a false discovery rate of 5 % "
            f"among all comparisons of the tables (Benjamini-Hochberg). {EXCLUDES_ZERO} The interval excludes 0, but "
            "the difference does not hold at this rate."
        )
    if few:
        notes.append(f"Only some seeds are paired: {', '.join(few)}.")
    for why, variants in reasons.items():
        mark = NOT_PAIRED if why.startswith("not paired") else ONE_PAIR
        what = "difference of the means" if mark == NOT_PAIRED else "difference"
        all_others = len(set(variants)) == len(rows) - 1
        whose = "all variants" if all_others else ", ".join(dict.fromkeys(variants))
        notes.append(f"{mark} The {what} has no interval for {whose}: {why}.")
    return notes


def _of_cost(comparison: Comparison) -> tuple[str, ...]:
    notes = [
        "The time of a step is the median over the last steps, without the time spent waiting for data. CPU time is "
        "summed over all threads; it is more reliable than wall time if other processes used the CPUs, too. The total "
        "training time includes validation."
    ]
    if comparison.baseline is not None:
        notes.append(f"Values with × are relative to {comparison.baseline}.")
    hardware = {run.provenance["hardware"] for run in comparison.runs if run.cost}
    if len(hardware) > 1:
        notes.append(f"The runs were trained on {len(hardware)} kinds of machines, so their times cannot be compared.")
    batches = {run.provenance["batch"] for run in comparison.runs if run.cost}
    if len(batches) > 1:
        notes.append(
            f"The runs have different batch sizes ({', '.join(sorted(batches))} pairs), so their step times cannot be "
            "compared."
        )
    return tuple(notes)


def _by_key(found: pd.DataFrame) -> dict[tuple[str, str, str], dict[str, Any]]:
    return {(row["variant"], row["split"], row["metric"]): row for row in found.to_dict("records")}
