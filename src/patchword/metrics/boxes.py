"""Does a phrase's map highlight the phrase's boxes?

The map is upsampled bilinearly to the image's pixels (`maps.upsample`). Its predicted box is the box around the largest
connected component of the pixels at or above the midpoint between minimum and maximum (`metrics.grounding`). A phrase,
such as "two men", can have several boxes:

    pointing_game  the highest pixel lies in any of the boxes; if several pixels share the maximum, the share of these
                   pixels that lie in any of the boxes
    r@1_any        the predicted box has an IoU of 0.5 or more with any of the boxes
    r@1_merged     the predicted box has an IoU of 0.5 or more with the box around all of them

The recalls are ANY-BOX and MERGED-BOXES of Li et al., arXiv 1908.03557, and Kamath et al., ICCV 2021, arXiv 2104.12763.
A map with a value that is not finite hits nothing; the predicted box of a constant map is the image.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patchword.maps.phrases import upsample
from patchword.metrics.components import largest_box
from patchword.metrics.map_scores import box_iou
from patchword.metrics.pointing import Maxima

NAMES = ("pointing_game", "r@1_any", "r@1_merged")

_BLOCK = 2**21  # pixels at a time: 64 MB or so


def box_hits(
    maps: Float[Tensor, "N P"],
    grid: tuple[int, int],
    size: tuple[int, int],
    boxes: Float[Tensor, "K 4"],
    phrase: Int[Tensor, " K"],
) -> Float[Tensor, "N 3"]:
    """The metrics `NAMES` of each phrase.

    Args:
        maps: One value per patch, row by row; higher values belong to the phrase.
        grid: Rows and columns of the patches.
        size: Height and width of the image in pixels.
        boxes: Left, top, right, bottom in pixels, right and bottom exclusive.
        phrase: The phrase of each box, in ascending order; each phrase has one or more boxes.
    """
    parts = [maps.new_zeros(0, len(NAMES))]
    step = max(1, _BLOCK // (size[0] * size[1]))
    for start in range(0, len(maps), step):
        own = (start <= phrase) & (phrase < start + step)
        pixels = upsample(maps[start : start + step], grid, size)
        parts.append(_hits(pixels, boxes[own], phrase[own] - start))
    return torch.cat(parts)  # upsampling makes the complete map NaN if one value is not finite; such a map hits nothing


def covered(
    boxes: Float[Tensor, "K 4"], phrase: Int[Tensor, " K"], phrases: int, size: tuple[int, int]
) -> Float[Tensor, " N"]:
    """The share of the image that the boxes of each phrase cover: the `pointing_game` of a pixel chosen at random.

    The arguments are those of `box_hits`, and the number of phrases N.
    """
    parts = [boxes.new_zeros(0)]
    step = max(1, _BLOCK // (size[0] * size[1]))
    for start in range(0, phrases, step):
        own = (start <= phrase) & (phrase < start + step)
        regions = _regions(boxes[own], phrase[own] - start, min(step, phrases - start), size)
        parts.append(regions.flatten(1).float().mean(1))
    return torch.cat(parts)


def _hits(maps: Float[Tensor, "n H W"], boxes: Float[Tensor, "k 4"], phrase: Int[Tensor, " k"]) -> Float[Tensor, "n 3"]:
    middle = (maps.amin((1, 2), keepdim=True) + maps.amax((1, 2), keepdim=True)) / 2
    predicted = largest_box(maps >= middle)
    pointed = Maxima.of_maps(maps).in_boxes(boxes, phrase)
    best = maps.new_zeros(len(maps)).scatter_reduce(0, phrase, box_iou(predicted[phrase], boxes), "amax")
    merged = box_iou(predicted, _merged(boxes, phrase, len(maps)))
    return torch.stack([pointed, (best >= 0.5).float(), (merged >= 0.5).float()], -1)


def _regions(
    boxes: Float[Tensor, "k 4"], phrase: Int[Tensor, " k"], phrases: int, size: tuple[int, int]
) -> Bool[Tensor, "n H W"]:
    """True for pixels whose centers lie in any box of each phrase."""
    count = torch.zeros(phrases, *size, device=boxes.device)
    return count.index_add(0, phrase, inside(boxes, *size).float()) > 0


def _merged(boxes: Float[Tensor, "k 4"], phrase: Int[Tensor, " k"], phrases: int) -> Float[Tensor, "n 4"]:
    """The smallest box around all boxes of each phrase."""
    index = phrase[:, None].expand(-1, 2)
    low = boxes.new_full((phrases, 2), torch.inf).scatter_reduce(0, index, boxes[:, :2], "amin")
    high = boxes.new_full((phrases, 2), -torch.inf).scatter_reduce(0, index, boxes[:, 2:], "amax")
    return torch.cat([low, high], -1)


def inside(boxes: Float[Tensor, "N 4"], height: int, width: int) -> Bool[Tensor, "N H W"]:
    """True for pixels whose centers lie in each box."""
    left, top, right, bottom = boxes[..., None].unbind(1)
    x = torch.arange(width, device=boxes.device) + 0.5
    y = torch.arange(height, device=boxes.device) + 0.5
    return ((top <= y) & (y < bottom))[:, :, None] & ((left <= x) & (x < right))[:, None, :]
