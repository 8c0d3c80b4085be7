"""Does a phrase's map choose the right one of several candidate boxes?

The score of a candidate is the mean of the map over its area, in which a patch that lies in it in part counts in part.
The candidate with the highest score is right if its IoU with any of the phrase's boxes is 0.5 or more. If a wrong
candidate has the same score, up to rounding, or if a score is NaN, the choice is wrong; so it is without any candidate.
A choice at random is right with the share of right candidates.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchword.metrics.detection import iou
from patchword.metrics.ties import beats
from patchword.training.needs import coverage

_RIGHT = 0.5


def candidate_hits(
    maps: Float[Tensor, "S N P"],
    grid: tuple[int, int],
    size: tuple[int, int],
    boxes: Float[Tensor, "K 4"],
    phrase: Int[Tensor, " K"],
    candidates: list[Float[Tensor, "_ 4"]],
) -> Float[Tensor, "N 1+S"]:
    """For each phrase, the share of right candidates, and 1 for each source whose map chooses a right one, else 0.

    Args:
        maps: The maps of N phrases from S sources, one value per patch, row by row.
        grid: Rows and columns of the patches.
        size: Height and width of the image in pixels.
        boxes: Left, top, right, bottom of the phrases' boxes in pixels.
        phrase: The phrase of each box.
        candidates: The candidate boxes of each phrase, in pixels.
    """
    found = maps.new_zeros(maps.shape[1], 1 + len(maps))
    for n, own in enumerate(candidates):
        if len(own):
            right = (iou(own, boxes[phrase == n]) >= _RIGHT).any(1)
            scores = maps[:, n].float() @ coverage(own, grid, size).T
            found[n, 0] = right.float().mean()
            found[n, 1:] = _chooses(scores[:, right], scores[:, ~right]).float()
    return found


def _chooses(right: Float[Tensor, "S R"], wrong: Float[Tensor, "S W"]) -> Tensor:
    """Whether the highest of the `right` scores beats all `wrong` ones."""
    if not right.shape[1]:
        return torch.zeros(len(right), dtype=torch.bool, device=right.device)
    best = right.amax(1)
    return best.isfinite() & beats(best[:, None].expand_as(wrong).flatten(), wrong.flatten()).view(wrong.shape).all(1)
