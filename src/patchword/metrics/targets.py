"""Phrases and the regions that they name, in the form in which the grounding metrics compare them with maps."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from patchword.data.batch import Batch
from patchword.maps.phrases import EVERYWHERE, Area, phrase_keys, phrase_texts, upsampling

MOST = 192  # pixels along a side on which maps are compared with masks; see `metrics.grounding`
_BLOCK = 16  # masks at a time, so that they stay in the cache of a CPU


@dataclass(eq=False)
class Targets:
    """The regions of N phrases. What does not depend on maps is computed once for all sources of maps.

    Attributes:
        masks: True for the visible pixels of each phrase's object.
        box: Left, top, right, bottom of the smallest box around each phrase's objects in pixels of the masks, right and
            bottom exclusive.
        caption: The caption of each phrase.
        boxes: All boxes of all phrases. Shape [K, 4].
        box_phrase: The phrase of each box. Shape [K].
        kept: False for phrases whose maps are meaningless. Their objects are still candidates in `object_choice`.
        keys: The key of each phrase in its data set; see `maps.phrases.phrase_keys`. Shape [N, 2].
        types: The category of each phrase's object; None if unknown.
        texts: The phrases as strings.
    """

    masks: Bool[Tensor, "N H W"]
    box: Float[Tensor, "N 4"]
    caption: Int[Tensor, " N"]
    boxes: Float[Tensor, "K 4"]
    box_phrase: Int[Tensor, " K"]
    kept: Bool[Tensor, " N"]
    keys: Int[Tensor, "N 2"]
    types: list[str | None]
    texts: list[str]
    _weights: dict[tuple[int, int], Float[Tensor, "N P"]] = field(init=False, default_factory=dict, repr=False)

    @classmethod
    def of_batch(cls, batch: Batch, kept: Bool[Tensor, " N"], area: Area = EVERYWHERE) -> Targets:
        """The phrases of a batch, in which at least one phrase has a mask.

        If the images have more than `MOST` pixels along a side, squares of pixels become one pixel of the masks.

        Args:
            batch: The batch.
            kept: False for phrases whose maps are meaningless.
            area: The phrases that are used, and the part of their images that is no padding.
        """
        assert batch.phrase_mask is not None
        height, width = area.pixels((batch.phrase_mask.shape[1], batch.phrase_mask.shape[2]))
        step = -(-max(height, width) // MOST)
        boxes, box_phrase = area.boxes(batch.boxes, batch.box_phrase, len(kept))
        types, texts = batch.phrase_type or [None] * len(kept), phrase_texts(batch)
        places = torch.arange(len(kept))[area.index].tolist()
        return cls(
            masks=_coarse(batch.phrase_mask[area.index, :height, :width], step),
            box=batch.phrase_box[area.index] / step,
            caption=batch.phrase_caption[area.index],
            boxes=boxes / step,
            box_phrase=box_phrase,
            kept=kept[area.index],
            keys=phrase_keys(batch)[area.index],
            types=[types[i] for i in places],
            texts=[texts[i] for i in places],
        )

    def __len__(self) -> int:
        return len(self.masks)

    @property
    def size(self) -> tuple[int, int]:
        """The height and width of the masks in pixels."""
        return self.masks.shape[1], self.masks.shape[2]

    def boxes_of(self, phrases: Int[Tensor, " n"]) -> tuple[Float[Tensor, "k 4"], Int[Tensor, " k"]]:
        """All boxes of the phrases at these positions, and the index in `phrases` of each box's phrase."""
        index = phrases.new_full((len(self),), -1)
        index[phrases] = torch.arange(len(phrases), device=phrases.device)
        owner = index[self.box_phrase]
        return self.boxes[owner >= 0], owner[owner >= 0]

    @cached_property
    def area(self) -> Int[Tensor, " N"]:
        """The number of pixels of each mask."""
        parts = [_count(masks) for masks in self.masks.split(_BLOCK)]
        return torch.cat([*parts, self.caption.new_zeros(0)])

    @property
    def counted(self) -> Bool[Tensor, " N"]:
        """True for the phrases that metrics count: those that are kept and whose object has a visible pixel."""
        return self.kept & (self.area > 0)

    @cached_property
    def fingerprint(self) -> bytes:
        """A hash of the phrases and their regions: keys, texts, boxes, and areas of masks."""
        parts = (self.keys, self.caption, self.kept, self.box, self.boxes, self.box_phrase, self.area)
        found = blake2b(repr((self.size, self.types, self.texts)).encode())
        for part in parts:
            found.update(part.cpu().numpy().tobytes())
        return found.digest()

    @cached_property
    def pairs(self) -> tuple[Int[Tensor, " Q"], Int[Tensor, " Q"]]:
        """The first and the second phrase of all ordered pairs of two phrases of one caption."""
        one, other = (self.caption[:, None] == self.caption).fill_diagonal_(False).nonzero().unbind(-1)
        return one, other

    @cached_property
    def common(self) -> Int[Tensor, " Q"]:
        """The number of pixels that the masks of each pair have in common."""
        one, other = self.pairs
        found = torch.zeros_like(one)
        once = (one < other).nonzero()[:, 0]
        # The pairs are in lexicographic order; a stable sort by the second phrase gives the order of swapped pairs.
        swapped = other.argsort(stable=True)
        for place in once.split(_BLOCK):
            found[place] = _count(self.masks[one[place]] & self.masks[other[place]])
        found[swapped[once]] = found[once]
        return found

    def weights(self, grid: tuple[int, int]) -> Float[Tensor, "N P"]:
        """The weights of the patches in the mean of an upsampled map over each mask; zeros for an empty mask."""
        if grid not in self._weights:
            rows, columns = (upsampling(n, s).to(self.masks.device) for n, s in zip(grid, self.size, strict=True))
            parts = [rows.T @ masks.double() @ columns for masks in self.masks.split(_BLOCK)]
            weight = torch.cat([*parts, rows.new_zeros(0, *grid)]).flatten(1)
            self._weights[grid] = weight / weight.sum(-1, keepdim=True).clamp_min(1e-9)
        return self._weights[grid]


def _coarse(masks: Bool[Tensor, "n H W"], step: int) -> Bool[Tensor, "n H2 W2"]:
    """Masks in which each pixel stands for a square of `step` pixels, and is True if one of them is."""
    if step == 1:
        return masks
    height, width = masks.shape[1:]
    whole = pad(masks, (0, -width % step, 0, -height % step))
    return whole.unflatten(2, (-1, step)).any(-1).unflatten(1, (-1, step)).any(-2)


def _count(masks: Bool[Tensor, "n H W"]) -> Int[Tensor, " n"]:
    """The number of pixels of each mask. On a CPU numpy counts many times faster than torch sums booleans."""
    if masks.device.type == "cpu":
        return torch.tensor([np.count_nonzero(mask) for mask in masks.numpy()], dtype=torch.long)
    return masks.flatten(1).sum(-1)
