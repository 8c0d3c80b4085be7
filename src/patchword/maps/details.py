"""What an objective says about its maps and regions, as fields of an `Alignment`."""

from __future__ import annotations

from typing import Any

from jaxtyping import Bool
from torch import Tensor

from patchword.features import Images
from patchword.maps.alignment import Region
from patchword.objective import Objective


def details(objective: Objective, images: Images) -> dict[str, Any]:
    """The fields `measure`, `pruned` and `regions` of an `Alignment` of one embedded image."""
    regions = []
    if (proposed := objective.propose_regions(images)) is not None:
        (patches,), (logits,) = proposed
        found = zip(patches, logits.sigmoid().tolist(), strict=True)
        regions = [Region(_box(region, images.grid), confidence) for region, confidence in found if region.any()]
    return {"measure": objective.map_measure, "pruned": objective.map_is_pruned, "regions": regions}


def _box(patches: Bool[Tensor, " P"], grid: tuple[int, int]) -> tuple[int, int, int, int]:
    """The first row and column of a region, and one past its last row and column. The region must be a box."""
    rows, columns = patches.unflatten(0, grid).nonzero().unbind(-1)
    return int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1
