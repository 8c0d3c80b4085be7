"""Average precision of detected boxes, as COCO's evaluation computes it.

For each category, the detections of all images are ranked by their confidence. A detection is right if there is a box
of its category in its image whose intersection over union with it is at least the threshold, and that no detection of
higher confidence has taken. It takes the one with the highest intersection over union. Then

    p(r)   = the highest precision at a recall of r or more; 0 if r is not reached
    AP     = the mean of p over r = 0, 0.01, ..., 1
    mAP@t  = the mean of AP over the categories that have boxes, with threshold t

Lin et al., ECCV 2014, arXiv 1405.0312. Papers on region-word alignment report mAP@0.3 and mAP@0.5 (LOUPE, NeurIPS 2022,
arXiv 2208.02515). Crowds and boxes that are difficult are not marked here. PASCAL VOC's own evaluation takes the area
under p, or 11 recalls, instead of 101.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

THRESHOLDS = (0.3, 0.5)
MOST = 100  # detections of a category in an image: those with the highest confidence count

_RECALLS = 101


@dataclass(frozen=True)
class Boxes:
    """Boxes of objects in images.

    Attributes:
        boxes: Left, top, right and bottom of each box, in any unit.
        image: The image of each box.
        category: The category of each box.
    """

    boxes: Float[Tensor, "N 4"]
    image: Int[Tensor, " N"]
    category: Int[Tensor, " N"]

    def __getitem__(self, rows: Bool[Tensor, " N"] | Int[Tensor, " n"]) -> Boxes:
        """Returns the boxes where `rows` is True, or those at the positions `rows`, in their order."""
        return Boxes(self.boxes[rows], self.image[rows], self.category[rows])


def mean_average_precision(
    detected: Boxes, confidence: Float[Tensor, " N"], true: Boxes, thresholds: Sequence[float] = THRESHOLDS
) -> dict[str, float]:
    """The metrics `map@<threshold>` of the N detected boxes; NaN if there are no true boxes.

    Detections of categories without true boxes do not count, as in COCO's evaluation.
    """
    found: list[list[Tensor]] = [[] for _ in thresholds]
    for category in true.category.unique():
        own, objects = detected.category == category, true[true.category == category]
        for of_threshold, threshold in zip(found, thresholds, strict=True):
            of_threshold.append(average_precision(detected[own], confidence[own], objects, threshold))
    means = [torch.stack(values).mean() if values else torch.tensor(torch.nan) for values in found]
    return {f"map@{threshold:g}": mean.item() for threshold, mean in zip(thresholds, means, strict=True)}


def average_precision(
    detected: Boxes, confidence: Float[Tensor, " N"], true: Boxes, threshold: float
) -> Float[Tensor, ""]:
    """AP of the N detections of one category; `true` has one or more boxes."""
    order = confidence.argsort(descending=True, stable=True)
    detected = detected[order[_place_in_image(detected.image[order]) < MOST]]
    right = torch.zeros(len(detected.boxes), dtype=torch.float64)
    for image in true.image.unique():
        own = detected.image == image
        right[own] = matched(iou(detected.boxes[own], true.boxes[true.image == image]), threshold).double()
    hits = right.cumsum(0)
    precision = hits / torch.arange(1, len(hits) + 1)
    best = precision.flip(0).cummax(0).values.flip(0)
    recalls = torch.from_numpy(np.linspace(0, 1, _RECALLS))  # torch rounds some of them differently
    first = torch.searchsorted(hits / len(true.boxes), recalls)  # the first place where the recall is reached
    return torch.cat([best, best.new_zeros(1)])[first].mean()


def matched(overlaps: Float[Tensor, "N K"], threshold: float) -> Bool[Tensor, " N"]:
    """Whether each of N detections, the most confident first, takes one of the K boxes that are still free."""
    free = torch.ones(overlaps.shape[1], dtype=torch.bool)
    right = torch.zeros(len(overlaps), dtype=torch.bool)
    for place, overlap in enumerate(overlaps.masked_fill(overlaps < threshold, -1)):
        if (candidates := overlap.masked_fill(~free, -1)).numel() and candidates.max() >= 0:
            right[place], free[candidates.argmax()] = True, False
    return right


def iou(a: Float[Tensor, "N 4"], b: Float[Tensor, "K 4"]) -> Float[Tensor, "N K"]:
    """The intersection over union of each of N boxes with each of K boxes."""
    low, high = torch.maximum(a[:, None, :2], b[:, :2]), torch.minimum(a[:, None, 2:], b[:, 2:])
    common = (high - low).clamp_min(0).prod(-1)
    area_a, area_b = ((x[:, 2:] - x[:, :2]).prod(-1) for x in (a, b))
    return common / (area_a[:, None] + area_b - common)


def _place_in_image(image: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
    """The number of earlier detections of the same image."""
    grouped, order = image.sort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(image)) - torch.searchsorted(grouped, grouped)
    return place
