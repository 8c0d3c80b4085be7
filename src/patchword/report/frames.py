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

TRAINING = "training"  # the name of the split that holds the costs


def long_table(comparison: Comparison) -> pd.DataFrame:
    """Return one row for each number of each run.

    The columns are `variant`, `seed`, `split`, `metric`, `value`, and the provenance: `config_hash`, `commit`,
    `checkpoint`, `hardware`, `versions` and others. The costs of training are in the split `training`.
    """
    import pandas as pd

    rows = []
    for run in comparison.runs:
        numbers = run.metrics | {f"{TRAINING}/{name}": cost for name, cost in run.cost.items()}
        provenance = run.provenance
        for name, value in numbers.items():
            split, _, metric = name.partition("/")
            row: dict[str, Any] = {"variant": run.variant, "seed": run.seed, "split": split, "metric": metric}
            rows.append(row | {"value": value} | provenance)
    return pd.DataFrame(rows).astype({"seed": "Int64"})


def summary(comparison: Comparison) -> pd.DataFrame:
    """Return one row for each variant, split and metric: the mean over seeds and the difference from the baseline.

    The columns are `variant`, `split`, `metric`, `mean`, `sd` and `count` (of seeds). If there is a baseline and the
    metric can be compared, the following columns are filled: `difference`, `low` and `high` (the 95 % interval of the
    mean paired difference), `p` (of the paired t test), `pairs` (of seeds), `excludes_zero`, and `why_none` (the reason
    for a missing interval).
    """
    import pandas as pd

    numbers = by_seed(comparison)
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
        row |= {"difference": found.mean, "low": found.low, "high": found.high, "p": found.p, "pairs": found.pairs}
        rows.append(row | {"excludes_zero": found.excludes_zero, "why_none": found.why_none})
    return pd.DataFrame(rows)


def by_seed(comparison: Comparison) -> dict[tuple[str, str, str], dict[int, float]]:
    """Return the numbers by variant, split and metric, then by seed; -1 stands for an unknown seed."""
    import pandas as pd

    found: dict[tuple[str, str, str], dict[int, float]] = {}
    for row in long_table(comparison)[["variant", "split", "metric", "seed", "value"]].itertuples(index=False):
        seed = -1 if pd.isna(row.seed) else int(row.seed)
        found.setdefault((row.variant, row.split, row.metric), {})[seed] = row.value
    return found
