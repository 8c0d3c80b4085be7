"""Plots of cost against quality, with one point per variant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from patchword.report.comparison import Comparison
from patchword.report.names import Quality
from patchword.report.run import Run
from patchword.report.statistics import Spread, spread
from patchword.report.style import Ink, legend, look_of, panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Point:
    """The time of a step and the quality of one variant."""

    variant: str
    milliseconds: Spread
    quality: Spread


def step_cost(comparison: Comparison) -> tuple[str, str]:
    """Return the key and the label of a step's cost: CPU time if all runs were trained on CPUs, else wall time."""
    on_cpu = all(
        run.trained.get("memory_of") == "process" and "step_cpu_seconds" in run.cost for run in comparison.runs
    )
    return ("step_cpu_seconds", "CPU time of a step") if on_cpu else ("step_seconds", "time of a step")


def points(comparison: Comparison, quality: Quality, split: str) -> list[Point]:
    """Return a point for each variant whose runs recorded the cost of a step and measured this quality."""
    key, _ = step_cost(comparison)
    found = []
    for variant in comparison.variants:
        runs = comparison.of(variant)
        times = [run.cost[key] * 1e3 for run in runs if key in run.cost]
        means = [mean for run in runs if (mean := _mean(run, quality, split)) is not None]
        if times and means:
            found.append(Point(variant, spread(times), spread(means)))
    return found


def draw(found: Sequence[Point], title: str, comparison: Comparison, ink: Ink) -> Figure:
    """Plot quality over the cost of a step, relative to the baseline's if known; bars are standard deviations."""
    baseline, (_, words) = comparison.baseline, step_cost(comparison)
    unit = next((point.milliseconds.mean for point in found if point.variant == baseline), None)
    scale = 1 / unit if unit else 1
    figure, axes = panel(title, f"{words}, × {baseline}" if unit else f"{words}, ms", "", ink)
    for point in found:
        look = look_of(comparison.variants.index(point.variant)) | {"linestyle": "none"}
        x, width = point.milliseconds.mean * scale, point.milliseconds.sd * scale
        axes.errorbar(
            x, point.quality.mean, point.quality.sd, width, label=point.variant, markersize=7, elinewidth=1, **look
        )
    axes.margins(0.12)
    legend(figure, axes, ink)
    return figure


def _mean(run: Run, quality: Quality, split: str) -> float | None:
    """Return the mean of the metrics; None if the run did not measure one of them."""
    names = [f"{split}/{metric}" for metric in quality.metrics]
    return fmean(run.metrics[name] for name in names) if run.metrics.keys() >= {*names} else None
