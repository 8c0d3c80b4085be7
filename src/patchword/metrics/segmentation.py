"""How well do predicted labels of pixels agree with the true ones?

With I_c, P_c, T_c the pixels of an image that are class c in both, in the prediction, and in truth:

    miou            I_c and P_c + T_c - I_c, summed over all images, divided; the mean over classes (those of which no
                    pixel is predicted or true are left out). What most papers call mIoU
    miou_per_image  I_c / (P_c + T_c - I_c) of each image, the mean over the classes of its truth, the mean over images
                    (SPARC, arXiv 2401.09865)
    pixel_accuracy  the sum of all I_c over that of all T_c

A guess gives each pixel one of K candidates with equal probability: `chance_*` are the same numbers of the expected
I_c = T_c / K and P_c = (all pixels) / K.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

IGNORED = 255  # pixels that do not count
NO_CLASS = 254  # in truth pixels of no class, on which every prediction is wrong; in a prediction undecided pixels


def areas(predicted: UInt8[Tensor, "H W"], truth: UInt8[Tensor, "H W"], classes: int) -> Float[Tensor, "3 C"]:
    """I_c, P_c and T_c of one image, in pixels.

    Args:
        predicted: A class from 0 on, or `NO_CLASS`.
        truth: Likewise, or `IGNORED`.
        classes: C.
    """
    counts = truth != IGNORED
    predicted, truth = predicted[counts].long(), truth[counts].long()
    same = predicted[predicted == truth]
    return torch.stack([x.bincount(minlength=256)[:classes] for x in (same, predicted, truth)]).double()


def expected_areas(
    truth: Float[Tensor, "N C"], pixels: Float[Tensor, " N"], candidates: Bool[Tensor, "N C"]
) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N C"]]:
    """I_c and P_c that a guess is expected to have.

    Args:
        truth: T_c of each image.
        pixels: The number of pixels that count in each image, of any class or none.
        candidates: The classes among which each image's pixels are guessed.
    """
    share = candidates / candidates.sum(-1, keepdim=True).clamp_min(1)
    return truth * share, pixels[:, None] * share


def class_ious(
    common: Float[Tensor, "N C"], predicted: Float[Tensor, "N C"], truth: Float[Tensor, "N C"]
) -> Float[Tensor, " C"]:
    """Intersection over union of each class over all images; NaN for a class that is neither predicted nor true."""
    return common.sum(0) / (predicted + truth - common).sum(0)


def segmentation(
    common: Float[Tensor, "N C"], predicted: Float[Tensor, "N C"], truth: Float[Tensor, "N C"]
) -> dict[str, float]:
    """The numbers above, from I_c, P_c and T_c of each image; NaN where there is nothing to average."""
    present = truth > 0
    per_image = (common / (predicted + truth - common)).masked_fill(~present, 0).sum(-1) / present.sum(-1)
    return {
        "miou": float(class_ious(common, predicted, truth).nanmean()),
        "miou_per_image": float(per_image[present.any(-1)].mean()),
        "pixel_accuracy": float(common.sum() / truth.sum()),
    }
