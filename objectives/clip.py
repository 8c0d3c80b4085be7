"""CLIP: Learning Transferable Visual Models From Natural Language Supervision.

Radford et al., ICML 2021, arXiv 2103.00020 (figure 3); written as equation (1) of SPARC, arXiv 2401.09865.

    Z = k * cos(x_i, y_j)                 [B, B], k = 1/tau learned
    L = 1/2 [ CE_rows(Z) + CE_rows(Z^T) ]

Differs from the paper: the loss is the same. The paper has no token-patch map; `align` is the cosine of each
token with each patch, which is the map that people usually draw for CLIP.
"""

from __future__ import annotations

from typing import final

from jaxtyping import Float
from torch import Tensor

from patchword.contrast import LogitScale, info_nce
from patchword.features import Images, Texts
from patchword.objective import Objective
from patchword.ops import cosine


@final
class CLIP(Objective):
    """Symmetric contrastive loss on the global embeddings.

    Args:
        temperature: Initial tau; 1/tau is learned and kept in [1, 100].
    """

    multi_positive = True

    def __init__(self, temperature: float = 0.07) -> None:
        super().__init__()
        self.scale = LogitScale(temperature)

    def forward(self, images: Images, texts: Texts) -> dict[str, Float[Tensor, ""]]:
        """The loss term `global`."""
        return {"global": info_nce(cosine, images.pooled, texts.pooled, self.scale())}  # figure 3

    def score(self, images: Images, texts: Texts) -> Float[Tensor, "I T"]:
        """Cosine of the global embeddings."""
        return cosine(images.pooled, texts.pooled)

    def align(self, images: Images, texts: Texts) -> Float[Tensor, "B L P"]:
        """Cosine of each token with each patch."""
        return cosine(texts.tokens, images.patches).masked_fill(~texts.mask[..., None], 0)
