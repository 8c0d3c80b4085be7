"""Cost against quality: a point for each variant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from patchword.report.comparison import Comparison
from patchword.report.labels import label_points
from patchword.report.run import Run
from patchword.report.statistics import Spread, spread
from patchword.report.style import Ink, legend, look_of, panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Quality:
    """What is held against the time of a step.

    Attributes:
        key: A short name, for files.
        title: What it is.
        metrics: The metrics whose mean it is, without the split.
    """

    key: str
    title: str
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class Point:
    """Where a variant stands.

    Attributes:
        variant: The variant.
        milliseconds: Of a step.
        quality: What it reached.
    """

    variant: str
    milliseconds: Spread
    quality: Spread


def kinds(query: str) -> list[Quality]:
    """Those that are drawn."""
    ways = tuple(f"retrieval/{way}/r@1" for way in ("image_to_text", "text_to_image"))
    precision = f"grounding/{query}/align/average_precision"
    return [
        Quality("retrieval", "R@1, mean of both ways", ways),
        Quality("maps", "Average precision of the objective's own map", (precision,)),
    ]


def step_cost(comparison: Comparison) -> tuple[str, str]:
    """The name and the words of a step's cost: of the CPUs, if all runs were trained on them, or wall time."""
    on_cpu = all(
        run.trained.get("memory_of") == "process" and "step_cpu_seconds" in run.cost for run in comparison.runs
    )
    return ("step_cpu_seconds", "CPU time of a step") if on_cpu else ("step_seconds", "time of a step")


def points(comparison: Comparison, quality: Quality, split: str) -> list[Point]:
    """The variants whose runs have recorded the cost of their steps and measured this."""
    key, _ = step_cost(comparison)
    found = []
    for variant in comparison.variants:
        runs = comparison.of(variant)
        times = [run.cost[key] * 1e3 for run in runs if key in run.cost]
        means = [mean for run in runs if (mean := _mean(run, quality, split)) is not None]
        if times and means:
            found.append(Point(variant, spread(times), spread(means)))
    return found


def draw(found: Sequence[Point], quality: Quality, comparison: Comparison, ink: Ink) -> Figure:
    """Quality over the cost of a step, relative to the baseline's where there is one; bars are standard deviations."""
    baseline, (_, words) = comparison.baseline, step_cost(comparison)
    unit = next((point.milliseconds.mean for point in found if point.variant == baseline), None)
    scale = 1 / unit if unit else 1
    figure, axes = panel(quality.title, f"{words}, × {baseline}" if unit else f"{words}, ms", "", ink)
    places = [(point.milliseconds.mean * scale, point.quality.mean) for point in found]
    for point, (x, y) in zip(found, places, strict=True):
        look = look_of(comparison.variants.index(point.variant)) | {
            "linestyle": "none",
            "markersize": 7,
            "elinewidth": 1,
        }
        axes.errorbar(x, y, point.quality.sd, point.milliseconds.sd * scale, label=point.variant, **look)
    axes.margins(0.12)
    if not label_points(figure, axes, [point.variant for point in found], places, ink):
        legend(figure, axes, ink)
    return figure


def _mean(run: Run, quality: Quality, split: str) -> float | None:
    """None where the run has not measured one of the metrics."""
    numbers = [run.metrics.get(f"{split}/{metric}") for metric in quality.metrics]
    known = [number for number in numbers if number is not None]
    return sum(known) / len(known) if len(known) == len(numbers) else None
