"""Regions: axis-aligned boxes of patches, and a head that selects the best of them."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from patchword.features import Images
from patchword.ops import without_padding


def boxes(
    grid: tuple[int, int], patch: Int[Tensor, "B M"], height: Int[Tensor, "B M"], width: Int[Tensor, "B M"]
) -> Bool[Tensor, "B M P"]:
    """The patches of the box around each patch, cut at the border of the grid.

    Args:
        grid: Numbers of rows and columns of patches.
        patch: The patches in the middle of the boxes.
        height: Number of rows of each box. Boxes with an even number lean to the end.
        width: Number of columns of each box.
    """

    def near(middle: Int[Tensor, "B M"], length: Int[Tensor, "B M"], size: int) -> Bool[Tensor, "B M size"]:
        offset = torch.arange(size, device=patch.device) - (middle - (length - 1) // 2)[..., None]
        return (offset >= 0) & (offset < length[..., None])

    rows, columns = near(patch // grid[1], height, grid[0]), near(patch % grid[1], width, grid[1])
    return (rows[..., :, None] & columns[..., None, :]).flatten(2)


class RegionHead(nn.Module):
    """Proposes regions: for every patch the most confident of several boxes around it, of which the best are kept.

    Args:
        embed_dim: The width D of the patches.
        sides: Heights and widths of boxes as shares of those of the image, rounded to complete patches, at least one.
            The shapes of boxes are all combinations.
        regions: The number M of regions kept for each image. If there are fewer patches, one region per patch is kept.
            If an image has fewer patches than others of the batch, its last regions can be empty.
    """

    def __init__(self, embed_dim: int, sides: tuple[float, ...], regions: int) -> None:
        super().__init__()
        self.sides = sides
        self.regions = regions
        self.confidence = nn.Sequential(
            nn.Conv2d(embed_dim, embed_dim, 3, padding=1), nn.GELU(), nn.Conv2d(embed_dim, len(sides) ** 2, 1)
        )

    def forward(self, images: Images) -> tuple[Bool[Tensor, "B M P"], Float[Tensor, "B M"]]:
        """The patches of each image's best regions, and their confidence as logits, highest confidence first."""
        cells = without_padding(images.patches, images.mask, 1, 0.0).mT.unflatten(-1, images.grid)
        best, shape = without_padding(self.confidence(cells).flatten(2), images.mask, -1).max(1)  # [B, P]
        logits, patch = best.topk(min(self.regions, best.shape[1]))
        shape = shape.gather(1, patch)
        rows, columns = self._lengths(images).unbind(1)
        height, width = rows.gather(1, shape // len(self.sides)), columns.gather(1, shape % len(self.sides))
        regions = boxes(images.grid, patch, height, width)
        if images.mask is not None:
            regions = regions & images.mask[:, None] & images.mask.gather(1, patch)[..., None]
        return regions, logits

    def _lengths(self, images: Images) -> Int[Tensor, "B 2 S"]:
        """The heights and widths of boxes, as numbers of patches of each image."""
        sides = torch.tensor(self.sides, dtype=torch.double, device=images.patches.device)
        return (images.shapes[..., None] * sides).round().clamp_min(1).long()
