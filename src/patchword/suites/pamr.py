"""Pixel-adaptive mask refinement: scores of pixels are averaged with those of similar pixels nearby.

PAMR (Araslanov & Roth, CVPR 2020, arXiv 2005.08104). The letters are ours.

    k_ij = mean over the colors c of -|x_ci - x_cj| / (0.1 sigma_ci)     j: the 8 neighbors of i at each distance    (a)
    m_i <- sum_j softmax_j(k_ij) m_j,                                    repeated                                    (b)

sigma_ci is the standard deviation of color c over i and its neighbors at all distances. A neighbor outside of the image
is the nearest pixel of the border.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import pad

DISTANCES = (8, 16)  # in pixels, as in NACLIP (Hajimiri et al., WACV 2025, arXiv 2404.08181)


class Refinement:
    """The refinement of maps by the colors of one image.

    Args:
        image: The RGB pixels of the image.
        steps: How often equation (b) is applied.
    """

    def __init__(self, image: UInt8[Tensor, "3 H W"], steps: int) -> None:
        x = image.float() / 255
        near = _neighbors(x)  # [8 J, 3, H, W] for J distances
        every = torch.cat([near, x.expand(len(DISTANCES), *x.shape)])
        k = -(near - x).abs() / (0.1 * every.std(0) + 1e-8)  # (a)
        self.weights: Float[Tensor, "N H W"] = k.mean(1).softmax(0)
        self.steps = steps

    def __call__(self, maps: Float[Tensor, "c H W"]) -> Float[Tensor, "c H W"]:
        """The refined maps."""
        for _ in range(self.steps):
            maps = torch.stack([(self.weights * _neighbors(one[None])[:, 0]).sum(0) for one in maps])  # (b)
        return maps


def _neighbors(x: Float[Tensor, "c H W"]) -> Float[Tensor, "N c H W"]:
    """The values at the 8 neighbors of each pixel, at each distance."""
    height, width = x.shape[1:]
    found = []
    for distance in DISTANCES:
        around = pad(x[None], (distance,) * 4, mode="replicate")[0]
        places = [(y, z) for y in range(3) for z in range(3) if (y, z) != (1, 1)]
        found += [
            around[:, y * distance : y * distance + height, z * distance : z * distance + width] for y, z in places
        ]
    return torch.stack(found)
