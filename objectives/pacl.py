"""PACL: Open Vocabulary Semantic Segmentation with Patch Aligned Contrastive Learning.

Mukhoti et al., CVPR 2023, arXiv 2212.04994, equations (2) and (3). v: normalized patches, y: normalized global text.

    s_ijp = v_ip . y_j                                 [B, B, P], every image with every text
    a_ijp = softmax_p(attention_scale * s_ijp)
    u_ij = sum_p a_ijp v_ip                            image i pooled by text j
    phi_ij = u_ij . y_j                                compatibility: = sum_p a_ijp s_ijp, u is never computed
    L = 1/2 [ CE_rows(k phi) + CE_rows(k phi^T) ]      k = 1/tau

Differs from the paper:
- The paper freezes both towers and trains a residual block on the patches. Here both are options of the encoder:
  `freeze: true` of the towers and `image_adapter: residual` of `TwoTowers`. Every tower that is not frozen is trained.
- We have not verified whether u is normalized before its product with y; `compatibility: cosine` normalizes it.
- We have not verified the value of tau. Here it is fixed at 0.07, CLIP's initial value. SPARC's baseline (arXiv
  2401.09865) learns it: `learn_temperature`.
- `attention_scale` is 1 in the paper. Because s lies in [-1, 1], no weight is then more than e^2 times another.
- `pooling: own` is not in the paper. A public port pools image i with its own text, u_ii, and compares the result with
  all texts. The pooled vector then contains information about the correct text. The option exists to measure this leak.
- The paper has no words. `align` uses each token in place of the text and returns s, the cosine by which the paper
  segments. The weights a of different tokens could not be compared.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, final

from jaxtyping import Bool, Float
from torch import Tensor

from patchword.contrast import LogitScale, info_nce, tiled
from patchword.features import Images, Texts
from patchword.objective import Objective
from patchword.ops import cosine, normalize, without_padding


@final
class PACL(Objective):
    """Contrastive loss of each text with every image, whose patches are pooled by that text.

    Args:
        compatibility: `dot` product of the pooled image and the text, or their `cosine`.
        attention_scale: Factor of the cosines in the softmax over patches; larger is sharper.
        pooling: Pool each image by each text (`pairwise`), or only by its `own` text, which leaks the correct text into
            the loss. Scores are always pairwise.
        temperature: tau of the loss, or its initial value if it is learned.
        learn_temperature: Learn 1/tau, kept in [1, 100].
    """

    uses_local_features = True

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
        self.multi_positive = pooling == "pairwise"  # several texts cannot all pool the same image
        self.scale = LogitScale(temperature, learned=learn_temperature)

    def forward(self, images: Images, texts: Texts) -> dict[str, Float[Tensor, ""]]:
        """The loss term `global`."""
        images, y = replace(images, patches=normalize(images.patches)), normalize(texts.pooled)
        if self.pooling == "own":
            a = self.attend(images.patches @ y[..., None], images.mask)
            # an image of one patch, for which the pooling of all texts is the same
            images = Images(images.pooled, (a * images.patches).sum(1, keepdim=True), (1, 1))
        return {"global": info_nce(self.phi, images, y, self.scale(), self._pair_size(images))}

    def score(self, images: Images, texts: Texts) -> Float[Tensor, "I T"]:
        """phi, with each image pooled by each text."""
        images = replace(images, patches=normalize(images.patches))
        return tiled(self.phi, images, normalize(texts.pooled), self._pair_size(images))

    def align(self, images: Images, texts: Texts) -> Float[Tensor, "B L P"]:
        """s of each token, used in place of the text, and each patch."""
        return cosine(texts.tokens, images.patches).masked_fill(~texts.mask[..., None], 0)

    def phi(self, images: Images, y: Float[Tensor, "T D"]) -> Float[Tensor, "I T"]:
        """The compatibility of images and texts, whose patches and vectors are normalized."""
        v = images.patches
        s = v @ y.T
        a = self.attend(s, images.mask)
        if self.compatibility == "dot":
            return (a * s).sum(1)  # (3), u.y without u
        return (normalize(a.mT @ v) * y).sum(-1)

    def attend(self, s: Float[Tensor, "I P T"], mask: Bool[Tensor, "I P"] | None = None) -> Float[Tensor, "I P T"]:
        """The weights a. For each text they sum to 1 over an image's patches."""
        return without_padding(self.attention_scale * s, mask, 1).softmax(1)  # (2)

    def _pair_size(self, images: Images) -> int:
        _, patches, width = images.patches.shape
        return 3 * patches + (3 * width if self.compatibility == "cosine" else 0)
