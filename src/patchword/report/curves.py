"""Learning curves: what runs reached on the validation split, over the steps of their training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from patchword.report.comparison import Comparison
from patchword.report.run import Run
from patchword.report.style import Ink, legend, look_of, panel

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Curve:
    """A number that validation logs.

    Attributes:
        key: A short name, for files.
        title: What it is.
        columns: The columns of `metrics.csv` whose mean it is.
    """

    key: str
    title: str
    columns: tuple[str, ...]


def kinds(query: str) -> list[Curve]:
    """Those that are drawn."""
    ways = tuple(f"val/retrieval/{way}/r@1" for way in ("image_to_text", "text_to_image"))
    precision = f"val/grounding/{query}/align/average_precision"
    return [
        Curve("retrieval", "Validation R@1, mean of both ways", ways),
        Curve("maps", "Validation average precision of the objective's own map", (precision,)),
    ]


def curve_table(comparison: Comparison, curve: Curve) -> pd.DataFrame:
    """A row for each run and validation: `variant`, `seed`, `step`, `value`; none for runs without `metrics.csv`."""
    import pandas as pd

    parts = []
    for run in comparison.runs:
        logged = _logged(run, curve.columns)
        if logged is not None:
            parts.append(logged.assign(variant=run.variant, seed=-1 if run.seed is None else run.seed))
    return pd.concat(parts) if parts else pd.DataFrame(columns=["step", "value", "variant", "seed"])


def draw(found: pd.DataFrame, curve: Curve, variants: Sequence[str], ink: Ink) -> Figure:
    """The mean over seeds, and a band of one standard deviation, at the steps that all seeds of a variant have."""
    figure, axes = panel(curve.title, "step", "", ink)
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


def _logged(run: Run, columns: Sequence[str]) -> pd.DataFrame | None:
    """The steps of one run's `metrics.csv`, and the mean of some of its columns."""
    import pandas as pd

    path = next((path for path in _logs(run) if path.is_file()), None)
    if path is None:
        return None
    try:
        table = pd.read_csv(path, usecols=["step", *columns]).dropna()
    except (OSError, ValueError):  # of other columns, or not a table
        return None
    table = table.drop_duplicates("step", keep="last").sort_values("step")  # a resumed run has logged some twice
    return (
        None if table.empty else pd.DataFrame({"step": table["step"] + 1, "value": table[list(columns)].mean(axis=1)})
    )


def _logs(run: Run) -> list[Path]:
    """Where the training of a run may have logged: beside its checkpoint, or beside its test."""
    checkpoint = run.measured.get("checkpoint")
    beside = [Path(checkpoint).parent.parent / "metrics.csv"] if isinstance(checkpoint, str) else []
    return [*beside, run.path.parent.parent / "fit" / "metrics.csv"]
