"""The gallery: maps of the same images and phrases from every variant."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from patchword.maps.alignment import Alignment
from patchword.report.comparison import Comparison
from patchword.report.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLES = 4
DPI = 130  # resolution of a picture
_COLUMNS = 5  # columns of a picture; with more columns its text would be too small


@dataclass(frozen=True)
class Sample:
    """One image and caption with the alignments that the variants' runs with one seed saved as `<name>.npz`."""

    name: str
    seed: int | None
    panels: dict[str, Alignment]


def samples(comparison: Comparison) -> list[Sample]:
    """Return the first samples that all variants with maps have saved, from the runs of the lowest seed.

    A variant without maps for that seed has no column. A sample is skipped if its pixels or phrases differ between
    runs.
    """
    seeds = sorted({run.seed for run in comparison.runs if _files(run)}, key=lambda seed: -1 if seed is None else seed)
    if not seeds:
        return []
    runs = [run for run in comparison.runs if run.seed == seeds[0] and _files(run)]
    common = set.intersection(*({file.stem for file in _files(run)} for run in runs))
    found = []
    for name in sorted(common, key=_order):
        panels = {run.variant: Alignment.load(run.path.parent / "maps" / f"{name}.npz") for run in runs}
        if _same(list(panels.values())):
            found.append(Sample(name, seeds[0], panels))
        if len(found) == SAMPLES:
            break
    return found


def draw(sample: Sample) -> list[Figure]:
    """Draw one row per phrase and one column per variant with its own map; many variants give several figures.

    If there is only one variant, there is one column per source of its maps.
    """
    from patchword.maps.plots import overlay

    first = next(iter(sample.panels.values()))
    if len(sample.panels) == 1:
        maps = {source: values.unflatten(1, first.grid) for source, values in first.maps.items()}
    else:
        maps = {name: _square(alignment) for name, alignment in sample.panels.items()}
    return [
        overlay(
            first.pixels, {name: maps[name] for name in part}, first.words, masks=first.masks, caption=first.caption
        )
        for part in _parts(list(maps))
    ]


def _files(run: Run) -> list[Path]:
    return sorted((run.path.parent / "maps").glob("*.npz"))


def _order(name: str) -> tuple[bool, list[tuple[bool, int, str]]]:
    """Return a sort key that puts the split `test` first and sorts numbers by value."""
    parts = [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)]
    return not re.fullmatch(r"test_\d+", name), parts


def _same(found: Sequence[Alignment]) -> bool:
    first = found[0]
    return all(
        torch.equal(other.pixels, first.pixels) and other.caption == first.caption and other.spans == first.spans
        for other in found
    )


def _parts(variants: Sequence[str]) -> list[list[str]]:
    """Split the columns into as few parts as possible, of almost equal length."""
    number = math.ceil(len(variants) / _COLUMNS)
    length = math.ceil(len(variants) / number)
    return [list(variants[start : start + length]) for start in range(0, len(variants), length)]


def _square(alignment: Alignment) -> torch.Tensor:
    source = "align" if "align" in alignment.maps else next(iter(alignment.maps))
    return alignment.maps[source].unflatten(1, alignment.grid)
