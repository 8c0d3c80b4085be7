"""Write tables of the main results of recorded comparisons into Markdown pages.

    python benchmarks/table.py docs/benchmark/runs README.md docs/benchmark.md
    python benchmarks/table.py docs/benchmark/sparc_threshold docs/benchmark.md
    python benchmarks/table.py docs/benchmark/map_sources docs/maps.md

A page marks the place of a table: `<!-- runs -->` and `<!-- /runs -->` for a folder with the name `runs`. The marker
`<!-- natural brief -->` has fewer columns and no intervals, and `<!-- natural transfer -->` shows the tests on other
data.

A folder without runs has what `benchmarks/map_sources.py` writes: the sources of maps of each variant.

The cost of a step comes from step_scenes.csv or step_natural.csv next to the folder of the runs, which
`benchmarks/training_step.py` writes, and not from the runs, because other work ran on the same machine.
"""

from __future__ import annotations

import json
import re
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from patchword.report import Comparison, long_table, read_runs
from patchword.report.statistics import Difference, discoveries, paired, spread

SUM = "CLIP + FILIP"  # the name of the objective `Sum` in the benchmark

Columns = dict[str, tuple[str, tuple[str, ...]]]  # by name: the head of the column, and the metrics whose mean it shows


def recall(split: str) -> tuple[str, ...]:
    """R@1 in both directions on a split."""
    return tuple(f"{split}/retrieval/{way}/r@1" for way in ("image_to_text", "text_to_image"))


def maps(metric: str, source: str = "align", split: str = "test") -> tuple[str, ...]:
    """A metric of the maps of a source, with a phrase's content words as the query."""
    return (f"{split}/grounding/content/{source}/{metric}",)


SCENES: Columns = {
    "R@1": ("R@1, mean of both ways", recall("test")),
    "align": ("maps: its own", maps("average_precision")),
    "cosine": ("maps: cosine", maps("average_precision", "cosine")),
    "dot": ("maps: dot product", maps("average_precision", "dot")),
}
NATURAL: Columns = {
    "R@1": ("R@1, mean of both ways", recall("test")),
    "swap": ("own maps: swap accuracy", maps("swap_accuracy")),
    "average precision": ("own maps: average precision", maps("average_precision")),
    "small": ("the same, small objects", maps("average_precision_small")),
    "pointing game": ("own maps: pointing game", maps("pointing_game")),
    "dot": ("dot product: average precision", maps("average_precision", "dot")),
}
BRIEF = ("R@1", "swap", "average precision", "dot")
TRANSFER: Columns = {
    "R@1": ("COCO: R@1, mean of both ways", recall("coco")),
    "swap": ("COCO, own maps: swap accuracy", maps("swap_accuracy", split="coco")),
    "average precision": ("COCO, own maps: average precision", maps("average_precision", split="coco")),
    "COCO": ("COCO objects: mIoU", ("coco_object/miou",)),
    "MSRC": ("MSRC: mIoU", ("msrc/miou",)),
    "MSRC, image": ("MSRC: mIoU per image", ("msrc/miou_per_image",)),
}
# Maps that do not look at the image, by the name of their row.
PRIORS = {
    "chance": "chance",
    "center_prior": "center",
    "mean_prior": "mean training map",
    "class_prior": "class mean map",
}
# The columns of the table of sources of maps.
OF_SOURCES = {
    "average_precision": "average precision ↑",
    "pointing_game": "pointing game ↑",
    "insertion": "insertion ↑",
    "deletion": "deletion ↓",
    "insertion_rank": "insertion, rank ↑",
    "deletion_rank": "deletion, rank ↓",
}


def columns(comparison: Comparison, view: str) -> Columns:
    """The columns of a table. Only the scenes have hard negatives."""
    if view == "transfer":
        return TRANSFER
    return SCENES if "test/hard_negatives/per_negative" in comparison.runs[0].metrics else NATURAL


def headlines(comparison: Comparison, view: str = "") -> pd.DataFrame:
    """The columns of a table. There is one row per run."""
    numbers = long_table(comparison)
    numbers["name"] = numbers.split.str.cat(numbers.metric, "/")
    wide = numbers.pivot(index=["variant", "seed"], columns="name", values="value")
    return pd.DataFrame(
        {name: wide[list(metrics)].mean(axis=1) for name, (_, metrics) in columns(comparison, view).items()}
    )


def markdown(comparison: Comparison, steps: pd.DataFrame | None, view: str) -> str:
    """The table with one row per variant: mean, standard deviation and, unless brief, the interval of the difference.

    Bold marks the best mean of a column, and the means whose paired difference from it has an interval that includes 0.
    ▲ (better) and ▼ (worse) mark the differences from the baseline that the Benjamini-Hochberg procedure keeps among
    all comparisons of the table, including those in columns that `brief` leaves out. A sentence below the table counts
    them.

    Args:
        comparison: The runs.
        steps: The cost of a step of each variant relative to the baseline (`ratio`), and its quartiles (`low` and
            `high`). None omits this column.
        view: `brief` has fewer columns, without intervals and quartiles; `transfer` has the test sets of other data.
    """
    brief, shown = view == "brief", columns(comparison, view)
    if brief:
        shown = {name: column for name, column in shown.items() if name in BRIEF}
    found = headlines(comparison, view)
    compared = differences(found, comparison.baseline)
    leading = {name: leaders(found[name]) for name in found}
    most = int(found.groupby("variant").size().max())
    head = ["", *(title for title, _ in shown.values()), *([] if steps is None else ["step"])]
    rows = [head, ["---"] * len(head)]
    for variant in comparison.variants:
        cells = [
            _cell(list(found.loc[variant, name]), compared.get((variant, name)), variant in leading[name], brief)
            for name in shown
        ]
        cost = [] if steps is None else [_step(steps.loc[variant], brief) if variant in steps.index else ""]
        seeds = len(found.loc[variant])
        fewer = f" ({seeds} seed{'s' * (seeds > 1)})" if seeds < most else ""
        rows.append([variant + fewer, *cells, *cost])
    rows += [[*row, *([] if steps is None else [""])] for row in _priors(comparison, shown)]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    if most == 1:
        return f"{table}\n*One seed, so differences have no intervals. **Bold**: the best of a column.*\n"
    intervals = sum(difference.excludes_zero for difference, _ in compared.values())
    kept = sum(sign != "" for _, sign in compared.values())
    return (
        f"{table}\n*{len(compared)} comparisons with {comparison.baseline}"
        f"{' in all columns of the complete table' if brief else ''}: the 95 % interval of {intervals} excludes"
        f" 0, and {kept} hold at a false discovery rate of 5 % (Benjamini-Hochberg): ▲ better, ▼ worse. **Bold**: the"
        " best mean of a column, and those that cannot be distinguished from it (the 95 % interval of the difference"
        " includes 0).*\n"
    )


def leaders(found: pd.Series) -> set[str]:
    """The variant with the highest mean, and those whose paired difference from it has an interval that includes 0.

    If some variants have more than one seed, those with one seed are left out.
    """
    seeds = found.groupby("variant").size()
    found = found[found.index.get_level_values("variant").isin(seeds.index[seeds > (seeds.max() > 1)])]
    best = found.groupby("variant").mean().idxmax()
    from_best = {
        variant: paired(by_seed(found.loc[variant]), by_seed(found.loc[best]))
        for variant in found.index.unique("variant")
    }
    return {best, *(variant for variant, each in from_best.items() if each.low <= 0 <= each.high)}


def differences(found: pd.DataFrame, baseline: str) -> dict[tuple[str, str], tuple[Difference, str]]:
    """The paired difference of each variant from the baseline in each column, and ▲, ▼ or an empty text.

    The p values come from two-sided paired t tests, adjusted by Benjamini and Hochberg's procedure over all comparisons
    of the table. Variants with fewer than two seeds in common with the baseline are left out.
    """
    compared = {}
    for variant, name in product(found.index.unique("variant"), found):
        difference = paired(by_seed(found.loc[variant, name]), by_seed(found.loc[baseline, name]))
        if variant != baseline and not difference.why_none:
            compared[variant, name] = difference
    kept = discoveries([each.p for each in compared.values()])
    signs = [
        "" if not keep else "▲" if each.mean > 0 else "▼" for keep, each in zip(kept, compared.values(), strict=True)
    ]
    return {key: (each, sign) for (key, each), sign in zip(compared.items(), signs, strict=True)}


def by_seed(values: pd.Series) -> dict[int, float]:
    """The values of a series by seed, in the format of `paired`."""
    return {int(seed): float(value) for seed, value in values.items()}


def _cell(values: list[float], compared: tuple[Difference, str] | None, best: bool, brief: bool) -> str:
    """A cell such as `**0.799 ± 0.004** ▲ (+0.010 to +0.021)`; with one seed `0.799`."""
    reached = spread(values)
    bold = "**" if best else ""
    cell = f"{bold}{reached.mean:.3f}{f' ± {reached.sd:.3f}' if reached.count > 1 else ''}{bold}"
    if compared is None:
        return cell
    difference, sign = compared
    interval = "" if brief else f" ({difference.low:+.3f} to {difference.high:+.3f})".replace("-", "−")
    return cell + (f" {sign}" if sign else "") + interval


def _step(step: pd.Series, brief: bool) -> str:
    """A cell such as `1.3 ×`, or with quartiles `1.3 × (1.2 to 1.5)`."""
    return f"{step.ratio:.1f} ×" + ("" if brief or step.name == "CLIP" else f" ({step.low:.1f} to {step.high:.1f})")


def _priors(comparison: Comparison, shown: Columns) -> list[list[str]]:
    """One row for chance and one for each position prior."""
    measured, rows = comparison.runs[0].metrics, []
    for prior, name in PRIORS.items():
        found = [[measured.get(of_prior(metric, prior)) for metric in metrics] for _, metrics in shown.values()]
        cells = ["" if None in values else f"{sum(values) / len(values):.3f}" for values in found]
        if any(cells):
            rows.append([f"*{name}*", *cells])
    return rows


def of_prior(metric: str, prior: str) -> str:
    """The name of a metric when it is measured on the maps of a prior."""
    start, _, last = metric.rpartition("/")
    if "/grounding/" in metric:
        return f"{start.rpartition('/')[0]}/{prior}/{last}"
    return f"{start}/{prior}_{last}"


def place(folder: Path) -> re.Pattern[str]:
    """A pattern for the tables of a folder in a page. Groups: start marker, view, the table and end marker."""
    name = re.escape(folder.name)
    return re.compile(rf"(<!-- {name}(?: (\w+))? -->\n)(.*?)(<!-- /{name} -->)", re.DOTALL)


def sources_table(folder: Path) -> str:
    """The table of what `benchmarks/map_sources.py` wrote: one row for each source of maps of each variant.

    Raises:
        ValueError: If there are no files, or they are not about the same photographs.
    """
    recorded = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    if not recorded:
        raise ValueError(f"{folder} has neither a compare.yaml nor files of benchmarks/map_sources.py")
    if len({json.dumps(found["samples"]) for found in recorded.values()}) != 1:
        raise ValueError(f"{folder}: its files must be about the same photographs")
    rows = [["", "map", *OF_SOURCES.values()], ["---"] * (2 + len(OF_SOURCES))]
    for variant, found in recorded.items():
        rows += source_rows(variant, found)
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    intervals = [
        gap(found, source, "align", metric)
        for found in recorded.values()
        for source in distinct(found)[1:]
        for metric in found["values"][source]
    ]
    for_bold = sum(len({*distinct(found)} - {*PRIORS}) - 1 for found in recorded.values()) * len(OF_SOURCES)
    return (
        f"{table}\n*{len(intervals)} comparisons with `align`, in brackets: the 95 % interval of the paired difference."
        f" {sum(low > 0 or high < 0 for _, low, high in intervals)} intervals exclude 0; they are not corrected for the"
        f" number of comparisons. **Bold**: the best source of an objective in a column, and those that cannot be"
        f" distinguished from it (the 95 % interval of the difference includes 0; {for_bold} further comparisons).*\n"
    )


def source_rows(variant: str, found: dict[str, Any]) -> list[list[str]]:
    """The rows of a variant in the table of sources. Position priors are in italics."""
    shown = distinct(found)
    same = [source for source in found["values"] if source not in shown]
    names = {source: f"*{PRIORS[source]}*" if source in PRIORS else f"`{source}`" for source in shown}
    names["align"] = ", ".join(f"`{source}`" for source in ("align", *same))
    bold = {metric: leading_sources(found, metric) for metric in OF_SOURCES}
    rows = [[variant if source == "align" else "", names[source]] for source in shown]
    for row, source in zip(rows, shown, strict=True):
        for metric in OF_SOURCES:
            if metric not in found["values"][source]:
                row.append("")
                continue
            value = f"{found['values'][source][metric][0]:.3f}"
            row.append(f"**{value}**" if source in bold[metric] else value)
            if source != "align":
                _, low, high = gap(found, source, "align", metric)
                row[-1] += f" ({low:+.3f} to {high:+.3f})".replace("-", "−")
    return rows


def distinct(found: dict[str, Any]) -> list[str]:
    """The sources of a file, `align` first, without those whose numbers are those of `align`."""
    values = found["values"]
    return ["align", *(source for source in values if values[source] != values["align"])]


def leading_sources(found: dict[str, Any], metric: str) -> set[str]:
    """The best source in a metric, and those whose paired difference from it has an interval that includes 0."""
    sources = [source for source in distinct(found) if source not in PRIORS and metric in found["values"][source]]
    sign = -1 if metric.startswith("deletion") else 1
    best = max(sources, key=lambda source: sign * found["values"][source][metric][0])
    gaps = {source: gap(found, source, best, metric) for source in sources if source != best}
    return {best, *(source for source, (_, low, high) in gaps.items() if low <= 0 <= high)}


def gap(found: dict[str, Any], source: str, other: str, metric: str) -> tuple[float, float, float]:
    """The difference of a source from another one, and its interval."""
    if (key := f"{source} - {other}") in found["differences"]:
        mean, low, high = found["differences"][key][metric]
        return mean, low, high
    mean, low, high = found["differences"][f"{other} - {source}"][metric]
    return -mean, -high, -low


def table(folder: Path, view: str) -> str:
    """The table of the runs in a folder."""
    if not (folder / "compare.yaml").is_file():
        return sources_table(folder)
    comparison = read_runs(folder)
    path = folder.parent / ("step_scenes.csv" if columns(comparison, view) is SCENES else "step_natural.csv")
    steps = step_ratios(path) if view != "transfer" and path.is_file() else pd.DataFrame()
    return markdown(comparison, steps if {*comparison.variants} & {*steps.index} else None, view)


def step_ratios(path: Path) -> pd.DataFrame:
    """The cost of each objective's step relative to CLIP's: `ratio`, a median, and its quartiles `low`, `high`."""
    return pd.read_csv(path, index_col="objective")[["ratio", "low", "high"]].rename(index={"Sum": SUM})


def main() -> None:
    """Write the tables into all pages on the command line."""
    runs, *pages = map(Path, sys.argv[1:])
    made: dict[str, str] = {}
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for view in {found[2] or "" for found in place(runs).finditer(text)} - {*made}:
            made[view] = table(runs, view)
        text, places = place(runs).subn(lambda p: p[1] + made[p[2] or ""] + p[4], text)
        if not places:
            sys.exit(f"{page} has no <!-- {runs.name} --> ... <!-- /{runs.name} -->")
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
