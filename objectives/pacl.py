"""PACL: Open Vocabulary Semantic Segmentation with Patch Aligned Contrastive Learning.

Mukhoti et al., CVPR 2023, arXiv 2212.04994, equations (2) and (3). v: normalised patches, y: normalised global text.

    s_ijp = v_ip . y_j                                 [B, B, P], every image with every text
    a_ijp = softmax_p(attention_scale * s_ijp)
    u_ij = sum_p a_ijp v_ip                            image i as text j sees it
    phi_ij = u_ij . y_j                                compatibility: = sum_p a_ijp s_ijp, u is never built
    L = 1/2 [ CE_rows(k phi) + CE_rows(k phi^T) ]      k = 1/tau

Differs from the paper:
- The paper freezes both towers and trains a residual block on the patches. Both belong to the encoder here:
  `freeze: true` on the towers, `image_adapter: residual` on the pair. Every tower that is not frozen is trained.
- Whether u is normalised before it meets y is not verified: `compatibility: cosine` does it.
- The value of tau is not verified: CLIP's initial 0.07, fixed, here. SPARC's baseline (arXiv 2401.09865) learns it:
  `learn_temperature`.
- `attention_scale` is 1 in the paper: as s lies in [-1, 1], no patch then weighs more than e^2 times another.
- `pooling: own` is no part of it: a public port pools image i with its own text, u_ii, and compares that with all
  texts. What is scored then already contains the answer; it is here to measure that leak.
- The paper has no words. `align` takes each token for a text and shows s, a cosine, by which the paper segments;
  weights a, one softmax per token, could not be compared between tokens.
"""

from __future__ import annotations

from typing import Literal, final

from jaxtyping import Float
from torch import Tensor

from patchword.contrast import Scale, info_nce, tiled
from patchword.features import Images, Texts
from patchword.objective import Objective
from patchword.ops import cosine, normalize


@final
class PACL(Objective):
    """Contrastive loss of each text with every image, pooled over patches by that text.

    Args:
        compatibility: `dot` product of the pooled image and the text, or their `cosine`.
        attention_scale: Factor of the cosines in the softmax over patches; larger is sharper.
        pooling: Each image by each text (`pairwise`), or by its `own` text only, a leak that makes the loss easy and
            the model worse. Scores are always pairwise.
        temperature: tau of the loss.
        learn_temperature: Learn 1/tau from there, kept in [1, 100].
    """

    local_score = True

    def __init__(
        self,
        compatibility: Literal["dot", "cosine"] = "dot",
        attention_scale: float = 1.0,
        pooling: Literal["pairwise", "own"] = "pairwise",
        temperature: float = 0.07,
        learn_temperature: bool = False,
    ) -> None:
        super().__init__()
        self.compatibility = compatibility
        self.attention_scale = attention_scale
        self.pooling = pooling
        self.scale = Scale(temperature, learned=learn_temperature)

    def forward(self, images: Images, texts: Texts) -> dict[str, Float[Tensor, ""]]:
        """The term `global`."""
        v, y = normalize(images.patches), normalize(texts.pooled)
        if self.pooling == "own":
            a = self.attend(v @ y[..., None])
            v = (a * v).sum(1, keepdim=True)  # an image of one patch, which every text has to take as it is
        return {"global": info_nce(self.phi, v, y, self.scale(), self._pair_size(v))}

    def score(self, images: Images, texts: Texts) -> Float[Tensor, "I T"]:
        """phi: each image pooled by each text."""
        v = normalize(images.patches)
        return tiled(self.phi, v, normalize(texts.pooled), self._pair_size(v))

    def align(self, images: Images, texts: Texts) -> Float[Tensor, "B L P"]:
        """s of each token, taken for the text, and each patch."""
        return cosine(texts.tokens, images.patches).masked_fill(~texts.mask[..., None], 0)

    def phi(self, v: Float[Tensor, "I P D"], y: Float[Tensor, "T D"]) -> Float[Tensor, "I T"]:
        """The compatibility of any images with any texts, both normalised."""
        s = v @ y.T
        a = self.attend(s)
        if self.compatibility == "dot":
            return (a * s).sum(1)
        return (normalize(a.mT @ v) * y).sum(-1)

    def attend(self, s: Float[Tensor, "I P T"]) -> Float[Tensor, "I P T"]:
        """The weights a: each text's sum to 1 over an image's patches."""
        return (self.attention_scale * s).softmax(1)

    def _pair_size(self, v: Float[Tensor, "I P D"]) -> int:
        _, patches, width = v.shape
        return 3 * patches + (3 * width if self.compatibility == "cosine" else 0)
