"""Which of C classes does an image show?

    accuracy@K         share of images whose class is among the K with the highest scores
    mean_class_recall  accuracy@1 within each class, its mean over the classes that have images

A tie fails: a class that scores as high as the right one, but for rounding, ranks before it. So does a NaN.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchword.metrics.hard_negatives import beats

KS = (1, 5)


def class_ranks(scores: Float[Tensor, "I C"], label: Int[Tensor, " I"]) -> Int[Tensor, " I"]:
    """The rank, from 1, of each image's own class.

    Args:
        scores: Higher is better.
        label: The class of each image.
    """
    own = scores.gather(1, label[:, None]).expand_as(scores)
    return (~beats(own.flatten(), scores.flatten())).unflatten(0, scores.shape).sum(1)  # its own is one of them


def class_accuracies(
    label: Int[Tensor, " I"], rank: Int[Tensor, " I"], classes: int, k: int = 1
) -> Float[Tensor, " C"]:
    """Accuracy@k within each class; NaN for a class without images.

    Args:
        label: The class of each image.
        rank: From `class_ranks`.
        classes: C.
        k: How many classes with the highest scores.
    """
    right = torch.zeros(classes, dtype=torch.float64, device=label.device).index_add(0, label, (rank <= k).double())
    return right / label.bincount(minlength=classes)


def classification(label: Int[Tensor, " I"], rank: Int[Tensor, " I"], classes: int) -> dict[str, float]:
    """The numbers above, each with what a guess gets, and the numbers of images and classes.

    Args:
        label: The class of each image.
        rank: From `class_ranks`.
        classes: C.
    """
    recall = float(class_accuracies(label, rank, classes).nanmean())
    result = {f"accuracy@{k}": float((rank <= k).double().mean()) for k in KS}
    result |= {f"chance_accuracy@{k}": min(k / classes, 1.0) for k in KS}
    result |= {"mean_class_recall": recall, "chance_mean_class_recall": 1 / classes}
    return result | {"images": float(len(label)), "classes": float(classes)}
