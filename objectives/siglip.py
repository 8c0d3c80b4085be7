"""SigLIP: Sigmoid Loss for Language Image Pre-Training.

Zhai et al., ICCV 2023, arXiv 2303.15343, algorithm 1.

    Z_ij = k * cos(x_i, y_j) + b              k = 1/tau and b learned
    z_ij = 1 if i = j, else -1
    L = -1/B sum_i sum_j log sigmoid(z_ij Z_ij)     a sum over texts, a mean over images

Every pair is a separate binary classification. There is no softmax, so no row or column has to be complete.

Differs from the paper: the loss is the same. With the initial values k = 10 and b = -10, the logit of a perfect match
starts at 0. If all cosines are 0, the bias that gives the right share of positives in a batch of B is -log(B - 1). With
K texts for each image, which the paper does not have, all K are positives (as in FLAIR, arXiv 2412.03561) and the loss
still divides by B; `normalizer: texts` divides by B K. The paper has no token-patch map; `align` is the cosine of each
token with each patch.
"""

from __future__ import annotations

from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from patchword.contrast import LogitScale, sigmoid_loss
from patchword.features import Images, Texts
from patchword.objective import Objective
from patchword.ops import cosine


@final
class SigLIP(Objective):
    """Pairwise sigmoid loss on the global embeddings.

    Args:
        temperature: Initial tau; 1/tau is learned and kept in [1, 100].
        bias: Initial b, learned.
        normalizer: The sum over all pairs is divided by the number of `images` or of `texts`. Both are B if each image
            has one text.
    """

    multi_positive = True

    def __init__(
        self, temperature: float = 0.1, bias: float = -10.0, normalizer: Literal["images", "texts"] = "images"
    ) -> None:
        super().__init__()
        self.scale = LogitScale(temperature)
        self.bias = nn.Parameter(torch.tensor([float(bias)]))  # one dimension, because sharding splits the first one
        self.normalizer = normalizer

    def forward(self, images: Images, texts: Texts) -> dict[str, Float[Tensor, ""]]:
        """The loss term `global`."""
        loss = sigmoid_loss(cosine, images.pooled, texts.pooled, self.scale(), self.bias.squeeze())  # algorithm 1
        return {"global": loss if self.normalizer == "images" else loss * len(images) / len(texts)}

    def score(self, images: Images, texts: Texts) -> Float[Tensor, "I T"]:
        """Cosine of the global embeddings."""
        return cosine(images.pooled, texts.pooled)

    def align(self, images: Images, texts: Texts) -> Float[Tensor, "B L P"]:
        """Cosine of each token with each patch."""
        return cosine(texts.tokens, images.patches).masked_fill(~texts.mask[..., None], 0)
