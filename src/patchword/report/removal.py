"""Curves of insertion and deletion: the score of images without the best patches of each map, or with only these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from patchword.report.comparison import Comparison
from patchword.report.names import SOURCES
from patchword.report.style import Ink, legend, look_of, panel

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

PROCESSES = {"deletion": "share of patches removed", "insertion": "share of patches shown"}
_COLUMNS = ("source", "fill", "process", "share", "score")


def curve_table(comparison: Comparison, split: str) -> pd.DataFrame:
    """Return the curves that runs wrote as `<split>_insertion_deletion.csv`, with the columns `variant` and `seed`.

    Runs without this file, or with another one of this name, have no rows.
    """
    import pandas as pd

    parts = []
    for run in comparison.runs:
        try:
            table = pd.read_csv(run.path.parent / f"{split}_insertion_deletion.csv", usecols=[*_COLUMNS]).dropna()
            table = table.astype({"share": float, "score": float})
        except (OSError, ValueError):
            continue
        parts.append(table.assign(variant=run.variant, seed=-1 if run.seed is None else run.seed))
    return pd.concat(parts) if parts else pd.DataFrame(columns=[*_COLUMNS, "variant", "seed"])


def draw(found: pd.DataFrame, process: str, title: str, ink: Ink) -> Figure:
    """Plot the mean score over seeds for each source of maps; `found` has the curves of one variant and one fill."""
    figure, axes = panel(title, PROCESSES[process], "score", ink)
    own = found[found["process"] == process]
    for number, source in enumerate(_ordered(own["source"].unique().tolist())):
        mean = own[own["source"] == source].groupby("share")["score"].mean()
        name = SOURCES.get(source, source.replace("_", " "))
        axes.plot(mean.index, mean, label=name, linewidth=1.5, markersize=4.5, **look_of(number))
    axes.set_xlim(0, 1)
    legend(figure, axes, ink)
    return figure


def _ordered(sources: Sequence[str]) -> list[str]:
    """The sources of maps in their usual order, then the baselines."""
    known = [source for source in SOURCES if source in sources]
    return [*known, *(source for source in sources if source not in known)]
