"""The regions that an objective proposes as objects, as boxes in pixels."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from patchword.features import Images
from patchword.metrics.components import largest_box
from patchword.objective import Objective


def proposed_boxes(objective: Objective, images: Images, size: tuple[int, int]) -> Float[Tensor, "M 4"] | None:
    """The boxes of one image, most confident first; None if the objective proposes no regions at all.

    Args:
        objective: The objective.
        images: The embedded image.
        size: Height and width in pixels of the complete grid of patches, with padding.
    """
    if (proposed := objective.propose_regions(images)) is None:
        return None
    regions = proposed[0][0]
    boxes = largest_box(regions[regions.any(1)].unflatten(1, images.grid))  # a region is one component
    (height, width), (rows, columns) = size, images.grid
    return boxes * boxes.new_tensor([width / columns, height / rows] * 2)
