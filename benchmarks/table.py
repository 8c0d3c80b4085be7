"""Write the headline numbers of recorded comparisons into Markdown pages.

    python benchmarks/table.py docs/benchmark/runs README.md docs/benchmark.md
    python benchmarks/table.py docs/benchmark/sparc_threshold docs/benchmark.md

Each page has a place for them, between `<!-- runs -->` and `<!-- /runs -->` for a folder of the name `runs`. After
`<!-- runs brief -->` the intervals are left out.

The cost of a step is not the runs' own, which took their time on a machine that did other things, too, but that of
`benchmarks/training_step.py --towers scenes --csv step.csv`, in the folder that `runs` is in.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pandas as pd

from patchword.report import Comparison, long_table, read_runs
from patchword.report.statistics import paired, spread

WAYS = ("retrieval/image_to_text/r@1", "retrieval/text_to_image/r@1")
MAPS = {source: f"grounding/content/{source}/average_precision" for source in ("align", "cosine", "dot")}
SUM = "CLIP + FILIP"  # what the benchmark calls the objective `Sum`
HEAD = ["", "R@1, mean of both ways", "maps: its own", "maps: cosine", "maps: dot product"]


def headlines(comparison: Comparison) -> pd.DataFrame:
    """R@1 and average precision of each source of maps on the split `test`; a row for each run."""
    numbers = long_table(comparison).query("split == 'test'")
    wide = numbers.pivot(index=["variant", "seed"], columns="metric", values="value")
    return pd.DataFrame({"R@1": wide[list(WAYS)].mean(axis=1)} | {source: wide[name] for source, name in MAPS.items()})


def markdown(comparison: Comparison, ratios: pd.Series | None, brief: bool) -> str:
    """A row for each variant: mean and standard deviation, and the interval of the paired difference, unless `brief`.

    Bold is what the interval tells from the baseline.

    Args:
        comparison: The runs.
        ratios: What a step of each variant costs, relative to the baseline's; None for no such column.
        brief: Leave out the intervals.
    """
    found = headlines(comparison)
    baseline = found.loc[comparison.baseline]
    head = HEAD if ratios is None else [*HEAD, "step"]
    rows = [head, ["---"] * len(head)]
    for variant in comparison.variants:
        own = baseline if variant == comparison.baseline else found.loc[variant]
        cells = [_quality(own[name], None if own is baseline else baseline[name], brief) for name in ("R@1", *MAPS)]
        rows.append([variant, *cells, *([] if ratios is None else [f"{ratios[variant]:.2f} ×"])])
    rows.append([*_baselines(comparison), *([] if ratios is None else [""])])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _quality(values: pd.Series, baseline: pd.Series | None, brief: bool) -> str:
    """`0.799 ± 0.004 (+0.010 to +0.021)`; bold where the interval leaves 0 out."""
    reached = spread(list(values))
    cell = f"{reached.mean:.3f} ± {reached.sd:.3f}"
    if baseline is None:
        return cell
    difference = paired(*({int(seed): value for seed, value in x.items()} for x in (values, baseline)))
    bold = "**" if difference.excludes_zero else ""
    interval = f"{difference.low:+.3f} to {difference.high:+.3f}".replace("-", "−")
    return f"{bold}{cell}{bold}" if brief else f"{cell} ({bold}{interval}{bold})"


def _baselines(comparison: Comparison) -> list[str]:
    metrics = comparison.runs[0].metrics
    ways = ("retrieval/image_to_text/chance_r@1", "retrieval/text_to_image/chance_r@1")
    chance = sum(metrics[f"test/{way}"] for way in ways) / 2
    maps = [metrics[f"test/grounding/content/{name}/average_precision"] for name in ("chance", "centre")]
    return ["*chance (centre)*", f"{chance:.3f}", *[f"{maps[0]:.3f} ({maps[1]:.3f})"] * 3]


def place(folder: Path) -> re.Pattern[str]:
    """Where a page has the table of a folder: what comes before it, whether that says `brief`, the table, the end."""
    name = re.escape(folder.name)
    return re.compile(rf"(<!-- {name}( brief)? -->\n)(.*?)(<!-- /{name} -->)", re.DOTALL)


def tables(folder: Path) -> dict[bool, str]:
    """The table of the runs in a folder, whole and, at True, brief."""
    comparison = read_runs(folder)
    ratios = step_ratios(folder.parent / "step.csv")
    known = ratios if set(comparison.variants) <= set(ratios.index) else None
    return {brief: markdown(comparison, known, brief) for brief in (False, True)}


def step_ratios(path: Path) -> pd.Series:
    """The cost of each objective's step, relative to CLIP's."""
    return pd.read_csv(path, index_col="objective")["ratio"].rename({"Sum": SUM})


def main() -> None:
    """Write the table into every page that is named."""
    runs, *pages = map(Path, sys.argv[1:])
    made = tables(runs)
    for page in pages:
        text, places = place(runs).subn(lambda p: p[1] + made[bool(p[2])] + p[4], page.read_text(encoding="utf-8"))
        if not places:
            sys.exit(f"{page} has no <!-- {runs.name} --> ... <!-- /{runs.name} -->")
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
