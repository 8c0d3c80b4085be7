"""Neural estimator of Shapley interactions, which also predicts its uncertainty.

Estimated interactions are labels: no gradient flows from them to the similarities. The network follows the idea of
LOUPE's uncertainty-aware neural Shapley interaction learning (arXiv 2208.02515). We know of no public code of its
layers and loss; those in this file are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from patchword import distributed
from patchword.ops import masked_mean

Estimate = Literal["exact", "sampled", "neural", "masked"]


class InteractionNetwork(nn.Module):
    """Predicts interactions from maps of similarities, and the logarithm of the variance of its error.

    The network is a 3x3 convolution, a residual self-attention over all cells, and a 3x3 convolution.

    Args:
        channels: Number of channels of the maps.
        width: Number of hidden channels.
    """

    def __init__(self, channels: int, width: int = 32) -> None:
        super().__init__()
        self.inward = nn.Conv2d(channels, width, 3, padding=1)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.outward = nn.Conv2d(width, 2, 3, padding=1)

    def forward(
        self, maps: Float[Tensor, "N C H W"], mask: Bool[Tensor, "N H W"]
    ) -> tuple[Float[Tensor, "N H W"], Float[Tensor, "N H W"]]:
        """Interaction and log-variance of every cell. Cells outside `mask` do not affect other cells."""
        outside = ~mask[:, None]
        x = self.inward(maps.masked_fill(outside, 0)).relu()
        cells, absent = x.flatten(2).mT, outside.flatten(1)
        absent = absent & ~absent.all(-1, keepdim=True)  # a softmax over no cell would be NaN
        mixed, _ = self.attention(cells, cells, cells, key_padding_mask=absent, need_weights=False)
        x = (x + mixed.mT.unflatten(-1, mask.shape[1:])).masked_fill(outside, 0)
        prediction, log_variance = self.outward(x).unbind(1)
        return prediction, log_variance.clamp(-10, 10)


def certain_or_sampled(
    predict: tuple[Float[Tensor, "*n"], Float[Tensor, "*n"]],
    sample: Callable[[Bool[Tensor, "*n"]], Float[Tensor, "*n"]],
    mask: Bool[Tensor, "*n"],
    unit: Float[Tensor, "*n"],
    threshold: float,
) -> tuple[Float[Tensor, "*n"], Float[Tensor, ""]]:
    """The network's predictions where it is certain and samples elsewhere, and the network's loss on the samples.

    The network predicts in units of a typical interaction, so that its learning speed does not depend on the number of
    players or their similarity, and `threshold` is a share of such a unit. The loss is the negative log-likelihood of a
    Gaussian, 1/2 [exp(-s) (prediction - sample)^2 + s], where s is the log-variance (Kendall and Gal, NeurIPS 2017,
    arXiv 1703.04977, equation 8). It is summed over uncertain entries and divided by the number of all entries,
    averaged over ranks. Nothing is sampled if all entries of all ranks are certain.

    Args:
        predict: Prediction and log-variance, in units of `unit`.
        sample: Function of the uncertain entries that draws an unbiased estimate of at least these.
        mask: True for real entries, False for padding.
        unit: The size of a typical interaction, positive.
        threshold: A prediction is certain if its standard deviation, in units of `unit`, is at most this.
    """
    prediction, log_variance = predict
    uncertain = mask & ((log_variance / 2).exp() > threshold)
    sampled = distributed.maximum(uncertain.any().to(torch.uint8)) > 0
    target = sample(uncertain).detach() / unit if bool(sampled) else prediction.detach()
    surprise = ((-log_variance).exp() * (prediction - target).square() + log_variance) / 2
    loss = surprise.masked_fill(~uncertain, 0).sum() / distributed.mean_count(mask, surprise.dtype)
    return unit * torch.where(uncertain, target, prediction.detach()), loss


def region_maps(
    similarity: Float[Tensor, "B P L"], regions: Bool[Tensor, "B M P"], mask: Bool[Tensor, "B L"], grid: tuple[int, int]
) -> Float[Tensor, "B*M 2 H W"]:
    """The network's input for each region: the mean similarity over words, and the mask of the region."""
    mean = masked_mean(similarity.mT, mask)[:, None].expand(regions.shape)
    return torch.stack([mean, regions.to(mean.dtype)], 2).flatten(0, 1).unflatten(-1, grid)
