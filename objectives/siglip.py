"""SigLIP: Sigmoid Loss for Language Image Pre-Training.

Zhai et al., ICCV 2023, arXiv 2303.15343, algorithm 1.

    Z_ij = k * cos(x_i, y_j) + b              k = 1/tau and b learned
    z_ij = 1 if i = j, else -1
    L = -1/B sum_i sum_j log sigmoid(z_ij Z_ij)     a sum over texts, a mean over images

Every pair is a yes-or-no question of its own: no softmax, so no row or column has to be complete.

Differs from the paper: nothing in the loss. With k = 10 and b = -10, its initial values, a perfect match starts at
logit 0; the bias at which a batch of B starts with the right share of positives is -log(B - 1). The paper has no
token-patch map; `align` is the cosine of each token with each patch.
"""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from patchword.contrast import Scale, sigmoid_loss
from patchword.features import Images, Texts
from patchword.objective import Objective
from patchword.ops import cosine


@final
class SigLIP(Objective):
    """Pairwise sigmoid loss on the global embeddings.

    Args:
        temperature: Initial tau; 1/tau is learned and kept in [1, 100].
        bias: Initial b, learned.
    """

    many_captions = True

    def __init__(self, temperature: float = 0.1, bias: float = -10.0) -> None:
        super().__init__()
        self.scale = Scale(temperature)
        self.bias = nn.Parameter(torch.tensor([float(bias)]))  # one dimension, since sharding splits along the first

    def forward(self, images: Images, texts: Texts) -> dict[str, Float[Tensor, ""]]:
        """The term `global`."""
        return {"global": sigmoid_loss(cosine, images.pooled, texts.pooled, self.scale(), self.bias.squeeze())}

    def score(self, images: Images, texts: Texts) -> Float[Tensor, "I T"]:
        """Cosine of the global embeddings."""
        return cosine(images.pooled, texts.pooled)

    def align(self, images: Images, texts: Texts) -> Float[Tensor, "B L P"]:
        """Cosine of token and patch."""
        return cosine(texts.tokens, images.patches).masked_fill(~texts.mask[..., None], 0)
