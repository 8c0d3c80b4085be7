"""Which of C classes does an image show? The metrics of zero-shot classification.

    accuracy@K         share of images whose class is among the K classes with the highest scores
    mean_class_recall  accuracy@1 within each class, averaged over the classes that have images

A tie counts as an error: a class whose score differs from that of the true class by rounding only is ranked before it.
A class whose score is NaN is ranked before the true class, too.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchword.metrics.ties import beats

KS = (1, 5)


def class_ranks(scores: Float[Tensor, "I C"], label: Int[Tensor, " I"]) -> Int[Tensor, " I"]:
    """The rank, from 1, of each image's true class `label`; higher scores are better."""
    own = scores.gather(1, label[:, None]).expand_as(scores)
    return (~beats(own.flatten(), scores.flatten())).unflatten(0, scores.shape).sum(1)  # the true class counts itself


def class_accuracies(
    label: Int[Tensor, " I"], rank: Int[Tensor, " I"], classes: int, k: int = 1
) -> Float[Tensor, " C"]:
    """Accuracy@k within each of the C `classes`, from the results of `class_ranks`; NaN for a class without images."""
    right = torch.zeros(classes, dtype=torch.float64, device=label.device).index_add(0, label, (rank <= k).double())
    return right / label.bincount(minlength=classes)


def classification(label: Int[Tensor, " I"], rank: Int[Tensor, " I"], classes: int) -> dict[str, float]:
    """The metrics above with their chance levels, and the numbers of images and classes."""
    recall = float(class_accuracies(label, rank, classes).nanmean())
    result = {f"accuracy@{k}": float((rank <= k).double().mean()) for k in KS}
    result |= {f"chance_accuracy@{k}": min(k / classes, 1.0) for k in KS}
    result |= {"mean_class_recall": recall, "chance_mean_class_recall": 1 / classes}
    return result | {"images": float(len(label)), "classes": float(classes)}
