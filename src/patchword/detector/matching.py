"""The loss of a set of predicted boxes: each object is matched with one patch, and the other patches are background.

    cost_pk = -a sigmoid(logit_p,q(k)) + b |box_p - box_k|_1 - c GIoU(box_p, box_k)
    sigma   = the assignment of objects to patches with the lowest sum of costs (Hungarian matching)
    class   = sum of the focal losses of all patches and queries; the target is 1 for a matched patch and its query
    l1      = sum over objects of |box_sigma(k) - box_k|_1
    giou    = sum over objects of 1 - GIoU(box_sigma(k), box_k)

All sums are divided by the number of objects of the batch. Carion et al., ECCV 2020, arXiv 2005.12872 (matching and
boxes); Lin et al., ICCV 2017, arXiv 1708.02002 (focal loss); Rezatofighi et al., CVPR 2019, arXiv 1902.09630 (GIoU).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou, generalized_box_iou_loss, sigmoid_focal_loss


@dataclass
class Weights:
    """The weights of the loss and of the costs of matching, and the shape of the focal loss.

    Attributes:
        classes: Weight a of the classes.
        l1: Weight b of the distance of the boxes.
        giou: Weight c of the generalized IoU.
        alpha: The weight of targets 1 in the focal loss, 1 - alpha is that of targets 0.
        gamma: The exponent of the focal loss.
    """

    classes: float = 1.0
    l1: float = 1.0
    giou: float = 1.0
    alpha: float = 0.3
    gamma: float = 2.0


@dataclass(frozen=True)
class Objects:
    """The K objects of a batch.

    Attributes:
        boxes: Center x, center y, width and height as shares of the image.
        image: The image of each object.
        query: The query that names each object.
    """

    boxes: Float[Tensor, "K 4"]
    image: Int[Tensor, " K"]
    query: Int[Tensor, " K"]


def match(
    logits: Float[Tensor, "P Q"], boxes: Float[Tensor, "P 4"], objects: Objects, weights: Weights
) -> tuple[Int[Tensor, " M"], Int[Tensor, " M"]]:
    """The patches and the objects of one image that are matched; M is the smaller of their numbers."""
    cost = -weights.classes * logits.sigmoid()[:, objects.query]
    cost = cost + weights.l1 * torch.cdist(boxes, objects.boxes, p=1)
    cost = cost - weights.giou * generalized_box_iou(corners(boxes), corners(objects.boxes))
    patch, own = linear_sum_assignment(cost.detach().float().cpu().numpy())
    return torch.from_numpy(patch).to(boxes.device), torch.from_numpy(own).to(boxes.device)


def set_loss(
    logits: Float[Tensor, "I P Q"], boxes: Float[Tensor, "I P 4"], objects: Objects, weights: Weights
) -> dict[str, Float[Tensor, ""]]:
    """The weighted terms `class`, `l1` and `giou`, computed in float32, also under autocast."""
    with torch.autocast(logits.device.type, enabled=False):
        objects = replace(objects, boxes=objects.boxes.float())
        return _terms(logits.float(), boxes.float(), objects, weights)


def _terms(
    logits: Float[Tensor, "I P Q"], boxes: Float[Tensor, "I P 4"], objects: Objects, weights: Weights
) -> dict[str, Float[Tensor, ""]]:
    target = torch.zeros_like(logits)
    found, true = [boxes[0, :0]], [objects.boxes[:0]]
    for n in range(len(logits)):
        own = objects.image == n
        here = Objects(objects.boxes[own], objects.image[own], objects.query[own])
        patch, number = match(logits[n], boxes[n], here, weights)
        target[n, patch, here.query[number]] = 1
        found.append(boxes[n, patch])
        true.append(here.boxes[number])
    predicted, wanted = torch.cat(found), torch.cat(true)
    focal = sigmoid_focal_loss(logits, target, alpha=weights.alpha, gamma=weights.gamma, reduction="sum")
    giou = generalized_box_iou_loss(corners(predicted), corners(wanted), reduction="sum")
    count = max(len(objects.boxes), 1)
    return {
        "class": weights.classes * focal / count,
        "l1": weights.l1 * (predicted - wanted).abs().sum() / count,
        "giou": weights.giou * giou / count,
    }


def corners(boxes: Float[Tensor, "N 4"]) -> Float[Tensor, "N 4"]:
    """Left, top, right and bottom of boxes with center, width and height."""
    converted: Tensor = box_convert(boxes, "cxcywh", "xyxy")
    return converted
