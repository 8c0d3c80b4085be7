"""Grad-CAM on the last features of the image tower, for convolutional networks.

Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization. Ramprasaath R. Selvaraju et al.
ICCV 2017, arXiv 1610.02391.

f_p are the features of patch p after the image tower, before the adapter into the shared space; s_l is the score of the
image with token l (`pairs.word_scores`).

    (1)  alpha_c   = mean_p d s_l / d f_pc
    (2)  map(l, p) = relu(sum_c alpha_c f_pc)

Cost: one pass of the image tower, and for each token a backward pass of the adapter.
Needs: `TwoTowers` whose global vector is the mean of the patches. On a vision transformer, these features have mixed
with those of all patches, and maps are known to be poor; use `grad_eclip`.
"""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from patchword.encoders.base import Encoder
from patchword.encoders.two_towers import TwoTowers
from patchword.maps.pairs import Pairs
from patchword.objective import Objective


def grad_cam(objective: Objective, pairs: Pairs) -> Float[Tensor, "T L P"]:
    """The map (2) of each wanted token. Its values are 0 or more."""
    encoder = cast(TwoTowers, pairs.encoder)
    with torch.no_grad():
        features, class_token = encoder.image(pairs.pixels)
    features = features.requires_grad_()
    images = encoder.project_images(features, class_token)
    maps = pairs.empty()
    for image, text, place, (gradient,) in pairs.gradients(objective, images, [features]):
        channels = gradient.mean(1, keepdim=True)
        maps[text, place] = (channels * features[image].detach()).sum(-1).relu()
    return maps


def require_mean_pooling(encoder: Encoder) -> None:
    """Check that the score depends on the features of patches.

    Raises:
        ValueError: If it does not.
    """
    if not isinstance(encoder, TwoTowers):
        raise ValueError(f"{type(encoder).__name__} pools its images inside its tower")
    if encoder.image_pool != "mean":
        raise ValueError(f"the encoder pools images by image_pool {encoder.image_pool}, and not by the mean of patches")
