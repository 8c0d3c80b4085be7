"""How well do predicted labels of pixels agree with the true labels?

Let P_c and T_c be the numbers of pixels of an image that are class c in the prediction and in the ground truth, and I_c
the number of pixels that are class c in both:

    miou            the sum over images of I_c, divided by the sum over images of P_c + T_c - I_c; the mean over
                    classes. Classes without any predicted or true pixel are left out. Most papers call this mIoU
    miou_per_image  I_c / (P_c + T_c - I_c) of each image; the mean over the classes of the image's ground truth, then
                    over images (SPARC, arXiv 2401.09865)
    pixel_accuracy  the sum of all I_c divided by the sum of all T_c

A random guess assigns each pixel one of K candidates with equal probability: `chance_*` are the same metrics, computed
from the expected values I_c = T_c / K and P_c = (number of pixels) / K.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

IGNORED = 255  # ground truth: pixels that do not count
NO_CLASS = 254  # ground truth: pixels on which every prediction is wrong; prediction: undecided pixels


def areas(predicted: UInt8[Tensor, "H W"], truth: UInt8[Tensor, "H W"], classes: int) -> Float[Tensor, "3 C"]:
    """I_c, P_c and T_c of one image, in pixels.

    Args:
        predicted: A class from 0 on, or `NO_CLASS`.
        truth: A class from 0 on, `NO_CLASS` or `IGNORED`.
        classes: The number of classes, C.
    """
    counts = truth != IGNORED
    predicted, truth = predicted[counts].long(), truth[counts].long()
    same = predicted[predicted == truth]
    return torch.stack([x.bincount(minlength=256)[:classes] for x in (same, predicted, truth)]).double()


def mean_masks(truths: Sequence[UInt8[Tensor, "H W"]], classes: int, grid: tuple[int, int]) -> Float[Tensor, "C P"]:
    """The mean share of each cell that a class covers, over the images with the class; 0 for a class without images.

    Args:
        truths: The classes of the pixels of each image, of any size, or `NO_CLASS` or `IGNORED`.
        classes: The number of classes, C.
        grid: Rows and columns of cells.
    """
    total, images = torch.zeros(classes, grid[0] * grid[1]), torch.zeros(classes)
    for truth in truths:
        own = truth.unique()
        own = own[own < classes].long()
        total[own] += adaptive_avg_pool2d((truth == own[:, None, None]).float(), grid).flatten(1)
        images[own] += 1
    return total / images.clamp_min(1)[:, None]


def expected_areas(
    truth: Float[Tensor, "N C"], pixels: Float[Tensor, " N"], candidates: Bool[Tensor, "N C"]
) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N C"]]:
    """The expected I_c and P_c of a random guess.

    Args:
        truth: T_c of each image.
        pixels: The number of pixels of each image that are not `IGNORED`.
        candidates: True for the classes among which the pixels of each image are guessed.
    """
    share = candidates / candidates.sum(-1, keepdim=True).clamp_min(1)
    return truth * share, pixels[:, None] * share


def class_ious(
    common: Float[Tensor, "N C"], predicted: Float[Tensor, "N C"], truth: Float[Tensor, "N C"]
) -> Float[Tensor, " C"]:
    """The intersection over union of each class over all images; NaN for a class that is neither predicted nor true."""
    return common.sum(0) / (predicted + truth - common).sum(0)


def segmentation(
    common: Float[Tensor, "N C"], predicted: Float[Tensor, "N C"], truth: Float[Tensor, "N C"]
) -> dict[str, float]:
    """The metrics above, from I_c, P_c and T_c of each image; NaN if there is nothing to average."""
    present = truth > 0
    per_image = (common / (predicted + truth - common)).masked_fill(~present, 0).sum(-1) / present.sum(-1)
    return {
        "miou": float(class_ious(common, predicted, truth).nanmean()),
        "miou_per_image": float(per_image[present.any(-1)].mean()),
        "pixel_accuracy": float(common.sum() / truth.sum()),
    }
