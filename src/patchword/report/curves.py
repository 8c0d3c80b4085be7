"""Learning curves: metrics on the validation split over the steps of training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from patchword.report.comparison import Comparison
from patchword.report.names import Quality
from patchword.report.run import Run
from patchword.report.style import Ink, legend, look_of, panel

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def curve_table(comparison: Comparison, quality: Quality) -> pd.DataFrame:
    """Return one row per run and validation, with the columns `step`, `value`, `variant` and `seed`.

    Runs without `metrics.csv` have no rows.
    """
    import pandas as pd

    parts = []
    for run in comparison.runs:
        logged = _logged(run, [f"val/{metric}" for metric in quality.metrics])
        if logged is not None:
            parts.append(logged.assign(variant=run.variant, seed=-1 if run.seed is None else run.seed))
    return pd.concat(parts) if parts else pd.DataFrame(columns=["step", "value", "variant", "seed"])


def draw(found: pd.DataFrame, title: str, variants: Sequence[str], ink: Ink) -> Figure:
    """Plot the mean over seeds and a band of one standard deviation at the steps that all seeds of a variant have."""
    figure, axes = panel(title, "step", "", ink)
    for number, variant in enumerate(variants):
        own = found[found["variant"] == variant]
        if own.empty:
            continue
        by_step = own.groupby("step")["value"].agg(["mean", "std", "count"])
        by_step = by_step[by_step["count"] == own["seed"].nunique()]
        look = look_of(number)
        axes.plot(by_step.index, by_step["mean"], label=variant, linewidth=1.5, markersize=4.5, **look)
        band = by_step["mean"] - by_step["std"], by_step["mean"] + by_step["std"]
        axes.fill_between(by_step.index, *band, color=look["color"], alpha=0.15, linewidth=0)
    axes.set_xlim(left=0)
    legend(figure, axes, ink)
    return figure


def _logged(run: Run, columns: list[str]) -> pd.DataFrame | None:
    """Return the steps of one run's `metrics.csv` with the mean of some columns; None if there are none."""
    import pandas as pd

    path = next((path for path in _logs(run) if path.is_file()), None)
    if path is None:
        return None
    try:
        table = pd.read_csv(path, usecols=["step", *columns]).dropna()
    except (OSError, ValueError):  # The file lacks these columns, or is not a table.
        return None
    table = table.drop_duplicates("step", keep="last").sort_values("step")  # A resumed run logs some steps twice.
    return None if table.empty else pd.DataFrame({"step": table["step"] + 1, "value": table[columns].mean(axis=1)})


def _logs(run: Run) -> list[Path]:
    """Return the possible paths of a run's `metrics.csv`: in the folder of its checkpoints, or next to its test."""
    checkpoint = run.measured.get("checkpoint")
    of_checkpoint = [Path(checkpoint).parent.parent / "metrics.csv"] if isinstance(checkpoint, str) else []
    return [*of_checkpoint, run.path.parent.parent / "fit" / "metrics.csv"]
