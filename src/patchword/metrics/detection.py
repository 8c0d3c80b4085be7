"""Average precision of detected boxes, as COCO's evaluation computes it.

For each category, the detections of all images are ranked by their confidence. A detection is right if there is a box
of its category in its image whose intersection over union with it is at least the threshold, and that no detection of
higher confidence has taken. It takes the one with the highest intersection over union. Then

    p(r)   = the highest precision at a recall of r or more; 0 if r is not reached
    AP     = the mean of p over r = 0, 0.01, ..., 1
    mAP@t  = the mean of AP over the categories that have boxes, with threshold t

Lin et al., ECCV 2014, arXiv 1405.0312. Papers on region-word alignment report mAP@0.3 and mAP@0.5 (LOUPE, NeurIPS 2022,
arXiv 2208.02515).

A data set can mark boxes that need not be found: crowds in COCO, difficult objects in PASCAL VOC. A detection that
takes no box, but of whose area at least the threshold lies in such a box, is left out. This is the rule `coco`. The
rule `voc` is that of PASCAL VOC's development kit from 2010 on (Everingham et al., IJCV 2010):

    A detection is compared only with the box of its image that has the highest intersection over union with it. It is
    left out if this box need not be found, and wrong if another detection has taken it.
    AP is the area under p.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

THRESHOLDS = (0.3, 0.5)
MOST = 100  # detections of a category in an image: those with the highest confidence count (not for the rule `voc`)

Rule = Literal["coco", "voc"]

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

    def __getitem__(self, rows: slice | Bool[Tensor, " N"] | Int[Tensor, " n"]) -> Boxes:
        """Returns the boxes where `rows` is True, or those at the positions `rows`, in their order."""
        return Boxes(self.boxes[rows], self.image[rows], self.category[rows])


def mean_average_precision(
    detected: Boxes,
    confidence: Float[Tensor, " N"],
    true: Boxes,
    thresholds: Sequence[float] = THRESHOLDS,
    ignored: Boxes | None = None,
    rule: Rule = "coco",
) -> dict[str, float]:
    """The metrics `map@<threshold>` of the N detected boxes; NaN if there are no true boxes.

    Detections of categories without true boxes do not count, as in COCO's evaluation.

    Args:
        detected: The detected boxes.
        confidence: Their confidences; NaN is the lowest. Equal confidences keep their order.
        true: The boxes to find.
        thresholds: Intersections over union from which on a detection is right.
        ignored: Boxes that need not be found, such as crowds.
        rule: The rule by which detections take boxes, and the area that is averaged.
    """
    found = category_precisions(detected, confidence, true, thresholds, ignored, rule)
    means = {t: sum(values.values()) / len(values) if values else float("nan") for t, values in found.items()}
    return {f"map@{threshold:g}": mean for threshold, mean in means.items()}


def category_precisions(
    detected: Boxes,
    confidence: Float[Tensor, " N"],
    true: Boxes,
    thresholds: Sequence[float] = THRESHOLDS,
    ignored: Boxes | None = None,
    rule: Rule = "coco",
) -> dict[float, dict[int, float]]:
    """For each threshold, the AP of each category that has true boxes; see `mean_average_precision`."""
    ignored = true[torch.zeros_like(true.image, dtype=torch.bool)] if ignored is None else ignored
    found: dict[float, dict[int, float]] = {threshold: {} for threshold in thresholds}
    for category in true.category.unique().tolist():
        own, objects = detected.category == category, true[true.category == category]
        rest = ignored[ignored.category == category]
        for threshold, of_threshold in found.items():
            precision = average_precision(detected[own], confidence[own], objects, threshold, rest, rule)
            of_threshold[category] = precision.item()
    return found


def average_precision(
    detected: Boxes,
    confidence: Float[Tensor, " N"],
    true: Boxes,
    threshold: float,
    ignored: Boxes | None = None,
    rule: Rule = "coco",
) -> Float[Tensor, ""]:
    """AP of the N detections of one category; `true` has one or more boxes."""
    ignored = true[:0] if ignored is None else ignored
    order = confidence.nan_to_num(nan=-torch.inf, posinf=torch.inf).argsort(descending=True, stable=True)
    detected = detected[order]
    if rule == "coco":
        detected = detected[_place_in_image(detected.image) < MOST]
    right = torch.zeros(len(detected.boxes), dtype=torch.bool)
    left_out = torch.zeros_like(right)
    for image in torch.cat([true.image, ignored.image]).unique():
        own = (detected.image == image).nonzero()[:, 0]
        boxes, rest = true.boxes[true.image == image], ignored.boxes[ignored.image == image]
        if rule == "coco":
            right[own] = matched(iou(detected.boxes[own], boxes), threshold)
            left_out[own] = ~right[own] & (inside(detected.boxes[own], rest) >= threshold).any(-1)
        else:
            overlaps = iou(detected.boxes[own], torch.cat([boxes, rest]))
            right[own], left_out[own] = matched_to_nearest(overlaps, threshold, len(boxes))
    hits = right[~left_out].double().cumsum(0)
    precision = hits / torch.arange(1, len(hits) + 1)
    best = precision.flip(0).cummax(0).values.flip(0)
    if rule == "voc":
        return best[right[~left_out]].sum() / len(true.boxes)
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


def matched_to_nearest(
    overlaps: Float[Tensor, "N K"], threshold: float, true: int
) -> tuple[Bool[Tensor, " N"], Bool[Tensor, " N"]]:
    """Whether each of N detections, the most confident first, is right, and whether it is left out, by the rule `voc`.

    Only the first `true` of the K boxes must be found.
    """
    best, nearest = overlaps.max(1)
    near = best >= threshold
    left_out = near & (nearest >= true)
    taken: set[int] = set()
    right = torch.zeros_like(near)
    for place in (near & ~left_out).nonzero()[:, 0].tolist():
        right[place] = (box := int(nearest[place])) not in taken
        taken.add(box)
    return right, left_out


def iou(a: Float[Tensor, "N 4"], b: Float[Tensor, "K 4"]) -> Float[Tensor, "N K"]:
    """The intersection over union of each of N boxes with each of K boxes."""
    common = _common(a, b)
    return common / (_area(a)[:, None] + _area(b) - common)


def inside(a: Float[Tensor, "N 4"], b: Float[Tensor, "K 4"]) -> Float[Tensor, "N K"]:
    """The share of the area of each of N boxes that lies in each of K boxes."""
    return _common(a, b) / _area(a)[:, None]


def _common(a: Float[Tensor, "N 4"], b: Float[Tensor, "K 4"]) -> Float[Tensor, "N K"]:
    low, high = torch.maximum(a[:, None, :2], b[:, :2]), torch.minimum(a[:, None, 2:], b[:, 2:])
    return (high - low).clamp_min(0).prod(-1)


def _area(boxes: Float[Tensor, "N 4"]) -> Float[Tensor, " N"]:
    return (boxes[:, 2:] - boxes[:, :2]).prod(-1)


def _place_in_image(image: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
    """The number of earlier detections of the same image."""
    grouped, order = image.sort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(image)) - torch.searchsorted(grouped, grouped)
    return place
