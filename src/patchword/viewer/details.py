"""What some objectives can say beyond their maps: the viewer's whole knowledge of concrete objectives."""

from __future__ import annotations

from typing import Any

from jaxtyping import Bool
from torch import Tensor

from patchword.alignment import Region
from patchword.features import Images
from patchword.objective import Objective
from patchword.objectives import LOUPE, SPARC


def details(objective: Objective, images: Images) -> dict[str, Any]:
    """The optional fields of an `Alignment` that `objective` fills for one image.

    Args:
        objective: SPARC, whose `align` prunes patches; LOUPE, which proposes regions; any other, which adds nothing.
        images: One embedded image.
    """
    if isinstance(objective, SPARC):
        return {"measure": "weight", "pruned": objective.weights == "sparse"}
    if isinstance(objective, LOUPE):
        patches, confidence = objective.region_head(images)
        shares = confidence[0].sigmoid().tolist()
        boxes = [Region(_box(region, images.grid), share) for region, share in zip(patches[0], shares, strict=True)]
        return {"measure": "interaction", "regions": boxes}
    return {}


def _box(patches: Bool[Tensor, " P"], grid: tuple[int, int]) -> tuple[int, int, int, int]:
    """First row and column, and one past the last ones, of a region that is a box."""
    rows, columns = patches.unflatten(0, grid).nonzero().unbind(-1)
    return int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1
