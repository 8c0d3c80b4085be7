"""The heads of an OWL-ViT-style detector: for each patch, one box and a logit for each query.

    logit_pq = s_p (cos(W v_p, u_q) + b_p)          v: patches, u: pooled texts; s and b are linear in v, s is positive
    box_p    = sigmoid(MLP(v_p) + prior_p)          center, width and height as shares of the image

The prior of a patch is the box of the patch itself. Minderer et al., ECCV 2022, arXiv 2205.06230, section 3.1 and
appendix; layers as we recall them from the public code. The first values of s and b are ours: s = 10, b = -0.5.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import elu

from patchword.ops import cosine

_SCALE, _SHIFT = 10.0, -0.5  # logits from -15 to 5, so that few patches answer a query at first


class PatchHeads(nn.Module):
    """Classifies each patch by queries, and predicts a box around it.

    Args:
        width: The width D of the patches.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(width, width)
        self.shift = nn.Linear(width, 1)
        self.scale = nn.Linear(width, 1)
        nn.init.constant_(self.shift.bias, _SHIFT)
        nn.init.constant_(self.scale.bias, _SCALE - 1)
        self.box = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 4)
        )

    def forward(
        self, patches: Float[Tensor, "I P D"], grid: tuple[int, int], queries: Float[Tensor, "Q D"]
    ) -> tuple[Float[Tensor, "I P Q"], Float[Tensor, "I P 4"]]:
        """The logits of all queries, and the boxes: center x, center y, width, height as shares of the image."""
        similarity = cosine(self.embed(patches), queries[None].expand(len(patches), -1, -1))
        logits = (elu(self.scale(patches)) + 1) * (similarity + self.shift(patches))
        return logits, (self.box(patches) + box_prior(grid).to(patches)).sigmoid()


def box_prior(grid: tuple[int, int]) -> Float[Tensor, "P 4"]:
    """The logits of the center, width and height of each patch of a grid, row by row."""
    rows, columns = grid
    y, x = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij")
    boxes = torch.stack([x, y, torch.full_like(x, 1 / columns), torch.full_like(x, 1 / rows)], -1)
    return boxes.flatten(0, 1).logit(eps=1e-4)
