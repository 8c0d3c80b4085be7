"""The scores of phrase maps, phrase by phrase; `metrics.grounding` defines and averages them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from patchword.maps.phrases import upsample
from patchword.metrics.components import largest_box
from patchword.metrics.pointing import Maxima
from patchword.metrics.ranking import pixel_ranking
from patchword.metrics.swap import swaps
from patchword.metrics.targets import Targets

COLUMNS = (
    *("pointing_game", "pointing_game_box", "box_accuracy", "average_precision", "auroc"),
    *("object_choice", "object_choice_chance", "swaps_right", "swaps"),
)

_BLOCK = 2**21  # pixels at a time: 64 MB or so
_CACHED = 2**19  # pixels at a time on a CPU, so that they stay in its cache


def map_scores(maps: Float[Tensor, "N P"], grid: tuple[int, int], targets: Targets) -> Float[Tensor, "N 9"]:
    """The `COLUMNS` of each phrase. Phrases with the same map share the work that depends only on the map.

    Args:
        maps: One value per patch, row by row; higher values belong to the phrase.
        grid: Rows and columns of the patches.
        targets: The phrases and their regions. The scores of a phrase with an empty mask are meaningless.

    Raises:
        ValueError: If `grid` does not hold P patches.
    """
    if grid[0] * grid[1] != maps.shape[1]:
        raise ValueError(f"a grid of {grid[0]} x {grid[1]} does not hold maps of {maps.shape[1]} patches")
    maps = maps.float()
    different, of = maps.unique(dim=0, return_inverse=True)
    order = of.argsort(stable=True)
    ends = of.bincount(minlength=len(different)).cumsum(0).tolist()
    area = targets.size[0] * targets.size[1]
    values = maps.new_zeros(len(maps), 5)
    step = max(1, (_CACHED if maps.device.type == "cpu" else _BLOCK) // area)
    for start in range(0, len(different), step):
        pixels = upsample(different[start : start + step], grid, targets.size)
        maxima, box = Maxima.of_maps(pixels), largest_box(pixels >= _midpoint(pixels))
        own = order[ends[start - 1] if start else 0 : ends[start + len(pixels) - 1]]
        for phrases in own.split(max(1, _BLOCK // area)):
            row = of[phrases] - start
            overlap = box_iou(box[row], targets.box[phrases]) >= 0.5
            highest = maxima[row]
            pointed = highest.in_masks(targets.masks, phrases), highest.in_boxes(*targets.boxes_of(phrases))
            ranking = pixel_ranking(pixels.flatten(1), targets.masks.flatten(1), (row, phrases))
            values[phrases] = torch.stack([*pointed, overlap.float(), *ranking], -1)
    further = torch.stack([*choice(maps, grid, targets), *swaps(maps, grid, targets)], -1)
    values = torch.cat([values, further.to(values.dtype)], -1)
    values[:, :-1].masked_fill_(~maps.isfinite().all(-1, keepdim=True), torch.nan)  # the last column is a count
    return values


def box_iou(a: Float[Tensor, "N 4"], b: Float[Tensor, "N 4"]) -> Float[Tensor, " N"]:
    """The intersection over union of boxes a[n] and b[n]; 0 for two boxes without area."""
    low, high = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    common = (high - low).clamp_min(0).prod(-1)
    union = (a[:, 2:] - a[:, :2]).prod(-1) + (b[:, 2:] - b[:, :2]).prod(-1) - common
    return common / union.clamp_min(1e-9)


def choice(
    maps: Float[Tensor, "N P"], grid: tuple[int, int], targets: Targets
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Whether each phrase's own object has the strictly highest mean map, and 1 / number of objects.

    The candidates are the objects of the caption's phrases that have a visible pixel. Phrases with the same mask name
    the same object.
    """
    # The mean of an upsampled map over a mask is a weighted sum of its patches. The minimum is subtracted so that
    # objects tie exactly if the map is constant.
    weight = targets.weights(grid)
    level = maps.double() - maps.double().amin(-1, keepdim=True)
    one, other = targets.pairs
    same = (targets.common == targets.area[one]) & (targets.common == targets.area[other])
    phrase = torch.arange(len(maps), device=maps.device)
    named_first = phrase.scatter_reduce(0, one[same], other[same], "amin") == phrase  # once for each object
    rival = ~same & (named_first & (targets.area > 0))[other]
    mean = (level[one] * weight[other]).sum(-1)
    own = (level * weight).sum(-1)[one]
    lost = torch.zeros_like(level[:, 0]).index_add(0, one, (rival & ~(own > mean)).to(level.dtype))
    count = torch.zeros_like(lost).index_add(0, one, rival.to(level.dtype))
    return (lost == 0).float(), (1 / (1 + count)).float()


def _midpoint(maps: Float[Tensor, "N H W"]) -> Float[Tensor, "N 1 1"]:
    return (maps.amin((1, 2), keepdim=True) + maps.amax((1, 2), keepdim=True)) / 2
