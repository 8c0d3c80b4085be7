"""GLoRIA: A Multimodal Global-Local Representation Learning Framework for Label-efficient Medical Image Recognition.

Huang et al., ICCV 2021, equations (3) to (9). The public code defines temp1 to temp3, their values and their direction
(they multiply). For image i, text j, word w of the text and patch p of the image:

    s_wp = v_p . t_w                                   similarity, every image with every text     (3)
    a_wp = softmax_p(temp1 * s_wp)                     attention of the word over patches          (4)
    c_w = sum_p a_wp v_p                               patches pooled by the word                  (5)
    S_ij = log sum_w exp(temp2 * cos(c_w, t_w))        w over the real words of text j             (6)
    L_l = CE_rows(temp3 * S) + CE_rows(temp3 * S^T)    a sum, not a mean, of both directions    (7, 8)
    L_g = CE_rows(temp3 * cos(x_i, y_j)) + CE_rows of its transpose
    L = global_weight * L_g + local_weight * L_l                                                   (9)

c is never computed: cos(c_w, t_w) = sum_p a_wp s_wp / (|c_w| |t_w|) and |c_w|^2 = a_w^T (V V^T) a_w.

Differs from the paper:
- The paper's matching function is Z = S / temp2, a soft maximum of the cosines. Its code uses S itself in the loss, and
  so does this class.
- The code first applies a softmax over words (`attention: code`), which the paper does not have. The values that temp1
  multiplies are then at most 1, so that attention is flatter.
- The sum over words favors long captions when an image ranks texts; `aggregation: mean` does not.
- SPARC's baseline (arXiv 2401.09865) divides (3) by sqrt(D) and learns the temperatures: `similarity: scaled` and
  `learn_temperatures`.
- Words are the tokens that the mask selects. The code sums word pieces, counts [CLS] as a word and averages the text
  including its padding.
- `score` is the mean of cos(x_i, y_j) and Z. At test time the code scores with the cosine and
  temp2 * max_w cos(c_w, t_w). An empty caption has S = 0.
"""

from __future__ import annotations

from typing import Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from patchword.contrast import LogitScale, info_nce, tiled
from patchword.errors import UserError
from patchword.features import Images, Texts
from patchword.objective import Objective
from patchword.ops import cosine, masked_fill_min, softmax


@final
class GLoRIA(Objective):
    """A global contrastive loss, and a second one on how well each word matches the patches that it attends to.

    Args:
        global_weight: Weight of the loss on the global embeddings.
        local_weight: Weight of the loss on words and patches.
        attention: One softmax over patches (`paper`), or a softmax over words before it (`code`).
        similarity: `dot`, as in the paper, or `scaled` by 1 / sqrt(D), as in SPARC's baseline.
        aggregation: `sum` over words, as in the paper, or their `mean`, which does not grow with the caption.
        temp1: Factor of the similarities in the softmax over patches, in [1, 100]; the inverse of a temperature.
        temp2: Factor of the cosines of words with their pooled patches, in [1, 100].
        temp3: Factor of both contrastive losses' logits, in [1, 100].
        learn_temperatures: Learn the three factors, kept in [1, 100]. The paper does not learn them.
    """

    uses_local_features = True
    multi_positive = True

    def __init__(
        self,
        global_weight: float = 1.0,
        local_weight: float = 1.0,
        attention: Literal["paper", "code"] = "paper",
        similarity: Literal["dot", "scaled"] = "dot",
        aggregation: Literal["sum", "mean"] = "sum",
        temp1: float = 4.0,
        temp2: float = 5.0,
        temp3: float = 10.0,
        learn_temperatures: bool = False,
    ) -> None:
        super().__init__()
        for name, value in {"temp1": temp1, "temp2": temp2, "temp3": temp3}.items():
            if not 1 <= value <= LogitScale.maximum:
                raise UserError(f"GLoRIA's {name} is a factor and must lie in [1, {LogitScale.maximum}], not {value}")
        self.global_weight = global_weight
        self.local_weight = local_weight
        self.attention = attention
        self.similarity = similarity
        self.aggregation = aggregation
        self.temp1 = LogitScale(1 / temp1, learned=learn_temperatures)
        self.temp2 = LogitScale(1 / temp2, learned=learn_temperatures)
        self.temp3 = LogitScale(1 / temp3, learned=learn_temperatures)

    def forward(self, images: Images, texts: Texts) -> dict[str, Float[Tensor, ""]]:
        """The loss terms `global` and `local`."""
        k = self.temp3()
        local = info_nce(self.match, images, texts, k, _pair_size(images, texts))  # half of (7) and (8)
        return {  # (9)
            "global": self.global_weight * 2 * info_nce(cosine, images.pooled, texts.pooled, k),
            "local": self.local_weight * 2 * local,
        }

    def score(self, images: Images, texts: Texts) -> Float[Tensor, "I T"]:
        """The mean of the global cosine and Z = S / temp2, which is also in units of cosines."""
        local = tiled(self.match, images, texts, _pair_size(images, texts))
        return (cosine(images.pooled, texts.pooled) + local / self.temp2()) / 2

    def align(self, images: Images, texts: Texts) -> Float[Tensor, "B L P"]:
        """The attention a of equation (4). The row of each selected token sums to 1 over patches."""
        s = images.patches @ self.queries(texts).mT
        a = self.attend(s[..., None], texts.mask[:, None, :, None], images.mask).squeeze(-1)
        return a.mT.masked_fill(~texts.mask[..., None], 0)

    def match(self, images: Images, texts: Texts) -> Float[Tensor, "I T"]:
        """S of equation (6), of any images and any texts."""
        # Texts are the last axis, so that softmax and sums process many texts at a time.
        v, t, mask = images.patches, self.queries(texts).transpose(0, 1), texts.mask.T
        s = (v @ t.flatten(0, 1).T).unflatten(-1, mask.shape)  # (3), [I, P, L, T]
        a = self.attend(s, mask, images.mask)  # (4)
        gram = v @ v.mT
        seen = ((gram @ a.flatten(2)).view_as(a) * a).sum(1)
        # If patches cancel in c, the products contain only rounding errors.
        least = torch.finfo(v.dtype).eps * gram.diagonal(0, 1, 2).sum(1) / images.count()
        norms = torch.maximum(seen, least[:, None, None]) * t.square().sum(-1)
        # cos(c_w, t_w) with the c_w of (5), without computing c_w.
        cosines = (a * s).sum(1) * torch.where(norms <= 1e-24, 1.0, norms).rsqrt()
        total = masked_fill_min(self.temp2() * cosines, mask).logsumexp(1)  # (6)
        words = mask.sum(0)
        if self.aggregation == "mean":
            total = total - words.clamp_min(1).to(total.dtype).log()
        return total.masked_fill(words == 0, 0)

    def queries(self, texts: Texts) -> Float[Tensor, "T L D"]:
        """The words times all factors of (3) before its softmax. The cosines of (6) do not depend on these factors."""
        factor = texts.tokens.shape[-1] ** -0.5 if self.similarity == "scaled" else 1.0
        return texts.tokens * (factor * self.temp1() if self.attention == "paper" else factor)

    def attend(
        self, s: Float[Tensor, "I P L T"], mask: Bool[Tensor, "*i L T"], patches: Bool[Tensor, "I P"] | None = None
    ) -> Float[Tensor, "I P L T"]:
        """Equation (4), computed from the products of patches and queries, with the masks of words and of patches."""
        if self.attention == "code":
            s = self.temp1() * softmax(masked_fill_min(s, mask), 2)
        return softmax(s, 1, patches)


def _pair_size(images: Images, texts: Texts) -> int:
    return 4 * images.patches.shape[1] * texts.mask.shape[1]
