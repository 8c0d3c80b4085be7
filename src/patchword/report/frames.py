"""The numbers of a comparison as pandas tables."""

from __future__ import annotations

from dataclasses import asdict
from math import nan
from typing import TYPE_CHECKING, Any

from patchword.report.comparison import Comparison
from patchword.report.names import is_compared
from patchword.report.pairing import why_not_paired
from patchword.report.statistics import Difference, not_paired, paired, spread

if TYPE_CHECKING:
    import pandas as pd

TRAINING = "training"  # the split that costs are listed under


def long_table(comparison: Comparison) -> pd.DataFrame:
    """A row for each number of each run, with everything that it depends on.

    Columns are `variant`, `seed`, `split`, `metric`, `value`, and where the number comes from: `config_hash`, `commit`,
    `checkpoint`, `hardware`, `versions` and others. The costs of training have the split `training`.
    """
    import pandas as pd

    rows = []
    for run in comparison.runs:
        numbers = run.metrics | {f"{TRAINING}/{name}": value for name, value in run.cost.items()}
        for name, value in numbers.items():
            split, _, metric = name.partition("/")
            row: dict[str, Any] = {"variant": run.variant, "seed": run.seed, "split": split, "metric": metric}
            rows.append(row | {"value": value} | run.provenance)
    return pd.DataFrame(rows).astype({"seed": "Int64"})


def summary(comparison: Comparison) -> pd.DataFrame:
    """A row for each variant, split and metric: what it reached over seeds, and how much more than the baseline.

    Columns are `variant`, `split`, `metric`, `mean`, `sd`, `count` (of seeds), and where there is a baseline and the
    metric can be compared: `difference`, `low`, `high` (the 95 % interval of the mean paired difference), `pairs`,
    `excludes_zero`, and `why_none`, the reason why there is no interval.
    """
    import pandas as pd

    numbers = _by_seed(comparison)
    reasons = {
        variant: why_not_paired(comparison.of(variant), comparison.of(comparison.baseline))
        for variant in comparison.variants
        if comparison.baseline is not None
    }
    definitions = {split: comparison.definitions(split) for _, split, _ in numbers}
    rows = []
    for (variant, split, metric), values in numbers.items():
        row = {"variant": variant, "split": split, "metric": metric, **asdict(spread(list(values.values())))}
        baseline = numbers.get((str(comparison.baseline), split, metric))
        found = Difference(nan, nan, nan, 0)
        if baseline is not None and variant != comparison.baseline and is_compared(metric, definitions[split]):
            why = reasons[variant]
            found = not_paired(values, baseline, why) if why else paired(values, baseline)
        row |= {"difference": found.mean, "low": found.low, "high": found.high, "pairs": found.pairs}
        rows.append(row | {"excludes_zero": found.excludes_zero, "why_none": found.why_none})
    return pd.DataFrame(rows)


def _by_seed(comparison: Comparison) -> dict[tuple[str, str, str], dict[int, float]]:
    """Numbers by variant, split and metric, then by seed; an unknown seed, of which a variant has one, is -1."""
    import pandas as pd

    found: dict[tuple[str, str, str], dict[int, float]] = {}
    for row in long_table(comparison)[["variant", "split", "metric", "seed", "value"]].itertuples(index=False):
        seed = -1 if pd.isna(row.seed) else int(row.seed)
        found.setdefault((row.variant, row.split, row.metric), {})[seed] = row.value
    return found
