"""Estimators of Shapley interactions: exact, sampled, or a network that knows when it does not know.

All give labels: nothing of what they return sends a gradient back into the similarities. The network follows the idea
of LOUPE's uncertainty-aware neural Shapley interaction learning (arXiv 2208.02515), whose layers and loss are not
published in code: what is written here is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from patchword import distributed
from patchword.ops import masked_mean

Estimate = Literal["exact", "sampled", "neural"]


class InteractionNetwork(nn.Module):
    """Predicts interactions from maps of similarities, with the logarithm of its own error's variance.

    A 3x3 convolution, one self-attention over all cells, added, and a 3x3 convolution.

    Args:
        channels: Of the maps.
        width: Of the network.
    """

    def __init__(self, channels: int, width: int = 32) -> None:
        super().__init__()
        self.inward = nn.Conv2d(channels, width, 3, padding=1)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.outward = nn.Conv2d(width, 2, 3, padding=1)

    def forward(
        self, maps: Float[Tensor, "N C H W"], mask: Bool[Tensor, "N H W"]
    ) -> tuple[Float[Tensor, "N H W"], Float[Tensor, "N H W"]]:
        """Interaction and log-variance of every cell; cells outside `mask` reach no other."""
        outside = ~mask[:, None]
        x = self.inward(maps.masked_fill(outside, 0)).relu()
        cells, absent = x.flatten(2).mT, outside.flatten(1)
        absent = absent & ~absent.all(-1, keepdim=True)  # a softmax over nothing would be NaN
        mixed, _ = self.attention(cells, cells, cells, key_padding_mask=absent, need_weights=False)
        x = (x + mixed.mT.unflatten(-1, mask.shape[1:])).masked_fill(outside, 0)
        prediction, log_variance = self.outward(x).unbind(1)
        return prediction, log_variance.clamp(-10, 10)


def certain_or_sampled(
    predict: tuple[Float[Tensor, "*n"], Float[Tensor, "*n"]],
    sample: Callable[[], Float[Tensor, "*n"]],
    mask: Bool[Tensor, "*n"],
    unit: Float[Tensor, "*n"],
    threshold: float,
) -> tuple[Float[Tensor, "*n"], Float[Tensor, ""]]:
    """The network's predictions where it is certain, samples elsewhere; and its loss on those.

    The network works in units of a typical interaction, so that neither the number of players nor their similarity
    decides how fast it learns, and `threshold` means a share. The loss is the negative log-likelihood of a Gaussian,
    1/2 [exp(-s) (prediction - sample)^2 + s], s the log-variance (Kendall and Gal, NeurIPS 2017, arXiv 1703.04977,
    equation 8), summed over uncertain entries and divided by the number of all, on the average of ranks. Nothing is
    sampled when all entries are certain.

    Args:
        predict: Prediction and log-variance, in units of `unit`.
        sample: Draws an unbiased estimate of all entries.
        mask: True on entries that count.
        unit: The size of a typical interaction, positive.
        threshold: The standard deviation, in units, up to which a prediction is certain.
    """
    prediction, log_variance = predict
    uncertain = mask & ((log_variance / 2).exp() > threshold)
    target = sample().detach() / unit if bool(uncertain.any()) else prediction.detach()
    surprise = ((-log_variance).exp() * (prediction - target).square() + log_variance) / 2
    loss = surprise.masked_fill(~uncertain, 0).sum() / distributed.mean(mask.sum().to(surprise.dtype)).clamp_min(1)
    return unit * torch.where(uncertain, target, prediction.detach()), loss


def region_maps(
    similarity: Float[Tensor, "B P L"],
    regions: Bool[Tensor, "B M P"],
    mask: Bool[Tensor, "B L"],
    grid: tuple[int, int],
) -> Float[Tensor, "B*M 2 H W"]:
    """For each region, the network's input: the mean similarity over words, and where the region is."""
    mean = masked_mean(similarity.mT, mask)[:, None].expand(regions.shape)
    return torch.stack([mean, regions.to(mean.dtype)], 2).flatten(0, 1).unflatten(-1, grid)
