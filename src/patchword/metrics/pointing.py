"""The pointing game: does the highest pixel of a map lie in a region?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patchword.metrics.nonzero import nonzero


@dataclass(frozen=True)
class Maxima:
    """The highest pixels of n maps: one of each map, or several that tie.

    Attributes:
        map: The map of each pixel, in ascending order.
        y: The row of each pixel.
        x: The column of each pixel.
        number: The number of pixels of each map.
    """

    map: Int[Tensor, " K"]
    y: Int[Tensor, " K"]
    x: Int[Tensor, " K"]
    number: Int[Tensor, " n"]

    @classmethod
    def of_maps(cls, maps: Float[Tensor, "n H W"]) -> Maxima:
        """Find the highest pixels."""
        flat = maps.flatten(1)
        place = nonzero((flat == flat.amax(-1, keepdim=True)).flatten())
        row, pixel = place // flat.shape[1], place % flat.shape[1]
        return cls(row, pixel // maps.shape[2], pixel % maps.shape[2], row.bincount(minlength=len(maps)))

    def __getitem__(self, index: Int[Tensor, " m"]) -> Maxima:
        """The highest pixels of the maps at `index`; repeats are allowed."""
        number = self.number[index]
        row, offset = _repeated(number)
        place = self._first[index][row] + offset
        return Maxima(row, self.y[place], self.x[place], number)

    def in_masks(self, masks: Bool[Tensor, "N H W"], owner: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The share of each map's highest pixels that lie in a mask: 0 or 1 unless several pixels tie.

        Args:
            masks: Masks.
            owner: The mask of each map.
        """
        return self._share(masks[owner[self.map], self.y, self.x])

    def in_boxes(self, boxes: Float[Tensor, "k 4"], owner: Int[Tensor, " k"]) -> Float[Tensor, " n"]:
        """The share of each map's highest pixels whose centers lie in any box of the map.

        Args:
            boxes: Left, top, right, bottom in pixels, right and bottom exclusive.
            owner: The map of each box.
        """
        box, offset = _repeated(self.number[owner])
        place = self._first[owner][box] + offset
        y, x = self.y[place] + 0.5, self.x[place] + 0.5
        left, top, right, bottom = boxes[box].unbind(-1)
        inside = (left <= x) & (x < right) & (top <= y) & (y < bottom)
        return self._share(torch.zeros_like(self.map).index_add(0, place, inside.long()) > 0)

    @property
    def _first(self) -> Int[Tensor, " n"]:
        return self.number.cumsum(0) - self.number

    def _share(self, hit: Bool[Tensor, " K"]) -> Float[Tensor, " n"]:
        total = torch.zeros(len(self.number), device=hit.device).index_add(0, self.map, hit.float())
        return total / self.number.clamp_min(1)


def _repeated(number: Int[Tensor, " n"]) -> tuple[Int[Tensor, " K"], Int[Tensor, " K"]]:
    """Each position as often as its number says, and the offsets from 0 among equal positions."""
    position = torch.arange(len(number), device=number.device).repeat_interleave(number)
    return position, torch.arange(len(position), device=number.device) - (number.cumsum(0) - number)[position]
