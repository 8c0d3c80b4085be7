"""Regions: axis-aligned boxes of patches, and a head that selects the best of them."""

from __future__ import annotations

from itertools import product

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from patchword.features import Images


def boxes(grid: tuple[int, int], sides: tuple[float, ...]) -> Bool[Tensor, "K P P"]:
    """For every shape and every patch, the patches of the box around this patch, cut at the border.

    Args:
        grid: Numbers of rows and columns of patches.
        sides: Heights and widths of boxes as shares of those of the grid, rounded to complete patches, at least one.
            The K = len(sides)^2 shapes are all their combinations.
    """

    def near(size: int, side: float) -> Bool[Tensor, "size size"]:
        length = max(round(side * size), 1)
        first = torch.arange(size)[:, None] - (length - 1) // 2
        place = torch.arange(size)
        return (place >= first) & (place < first + length)

    shapes = [
        near(grid[0], h)[:, None, :, None] & near(grid[1], w)[None, :, None, :] for h, w in product(sides, repeat=2)
    ]
    return torch.stack(shapes).flatten(3).flatten(1, 2)


class RegionHead(nn.Module):
    """Proposes regions: for every patch the most confident of several boxes around it, of which the best are kept.

    Args:
        embed_dim: The width D of the patches.
        sides: Heights and widths of boxes; see `boxes`.
        regions: The number M of regions kept for each image. If there are fewer patches, one region per patch is kept.
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
        rows = images.patches.mT.unflatten(-1, images.grid)
        best, shape = self.confidence(rows).flatten(2).max(1)  # [B, P]
        logits, patch = best.topk(min(self.regions, best.shape[1]))
        masks = boxes(images.grid, self.sides).to(patch.device)
        return masks[shape.gather(1, patch), patch], logits
