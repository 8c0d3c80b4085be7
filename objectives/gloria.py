"""GLoRIA: A Multimodal Global-Local Representation Learning Framework for Label-efficient Medical Image Recognition.

Huang et al., ICCV 2021, equations (3) to (9); the names temp1 to temp3, their values and their direction (they
multiply) are those of the public code. For image i, text j, word w of the text and patch p of the image:

    s_wp = v_p . t_w                                   similarity, every image with every text     (3)
    a_wp = softmax_p(temp1 * s_wp)                     where the word looks                        (4)
    c_w = sum_p a_wp v_p                               what it sees there                          (5)
    S_ij = log sum_w exp(temp2 * cos(c_w, t_w))        w over the real words of text j             (6)
    L_l = CE_rows(temp3 * S) + CE_rows(temp3 * S^T)    a sum, not a mean, of both directions    (7, 8)
    L_g = CE_rows(temp3 * cos(x_i, y_j)) + its transpose's
    L = global_weight * L_g + local_weight * L_l                                                   (9)

c is never built: cos(c_w, t_w) = sum_p a_wp s_wp / (|c_w| |t_w|) and |c_w|^2 = a_w^T (V V^T) a_w.

Differs from the paper:
- The paper's matching function is Z = S / temp2, a soft maximum of the cosines; its code feeds S itself to the loss,
  and so does this.
- The code first takes a softmax over words (`attention: code`), which the paper does not have: what temp1 multiplies
  is then at most 1, and every word attends almost evenly.
- The sum over words favours long captions when an image ranks texts; `aggregation: mean` does not.
- SPARC's baseline (arXiv 2401.09865) divides (3) by sqrt(D) and learns the temperatures: `similarity: scaled` and
  `learn_temperatures`.
- Words are the tokens that the mask selects. The code sums word pieces, counts [CLS] as a word and averages the text
  over its padding.
- `score` is the mean of cos(x_i, y_j) and Z; the code's, at test time, of the cosine and temp2 * max_w cos(c_w, t_w).
  An empty caption has S = 0.
"""

from __future__ import annotations

from typing import Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from patchword.contrast import Scale, info_nce, tiled
from patchword.errors import InputError
from patchword.features import Images, Texts
from patchword.objective import Objective
from patchword.ops import cosine, masked_fill_min, softmax


@final
class GLoRIA(Objective):
    """Global contrast, and contrast of how well each word matches the patches it attends to.

    Args:
        global_weight: Weight of the loss on the global embeddings.
        local_weight: Weight of the loss on words and patches.
        attention: One softmax over patches (`paper`), or one over words before it (`code`).
        similarity: `dot`, as in the paper, or `scaled` by 1 / sqrt(D), as in SPARC's baseline.
        aggregation: `sum` over words, as in the paper, or their `mean`, which does not grow with the caption.
        temp1: Factor of the similarities in the softmax over patches, in [1, 100]; the inverse of a temperature.
        temp2: Factor of the cosines of words with what they attend to, likewise.
        temp3: Factor of both contrastive losses' logits, likewise.
        learn_temperatures: Learn the three factors, kept in [1, 100]. The paper does not.
    """

    local_score = True

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
            if not 1 <= value <= Scale.maximum:
                raise InputError(f"GLoRIA's {name} must lie in [1, {Scale.maximum}], not {value}: it multiplies")
        self.global_weight = global_weight
        self.local_weight = local_weight
        self.attention = attention
        self.similarity = similarity
        self.aggregation = aggregation
        self.temp1 = Scale(1 / temp1, learned=learn_temperatures)
        self.temp2 = Scale(1 / temp2, learned=learn_temperatures)
        self.temp3 = Scale(1 / temp3, learned=learn_temperatures)

    def forward(self, images: Images, texts: Texts) -> dict[str, Float[Tensor, ""]]:
        """The terms `global` and `local`."""
        k = self.temp3()
        local = info_nce(self.match, images, texts, k, _pair_size(images, texts))
        return {
            "global": self.global_weight * 2 * info_nce(cosine, images.pooled, texts.pooled, k),
            "local": self.local_weight * 2 * local,
        }

    def score(self, images: Images, texts: Texts) -> Float[Tensor, "I T"]:
        """The mean of the global cosine and Z = S / temp2, which is in units of cosines, too."""
        local = tiled(self.match, images, texts, _pair_size(images, texts))
        return (cosine(images.pooled, texts.pooled) + local / self.temp2()) / 2

    def align(self, images: Images, texts: Texts) -> Float[Tensor, "B L P"]:
        """The attention a of equation (4): each row of a selected token sums to 1 over patches."""
        s = images.patches @ self.queries(texts).mT
        a = self.attend(s[..., None], texts.mask[:, None, :, None]).squeeze(-1)
        return a.mT.masked_fill(~texts.mask[..., None], 0)

    def match(self, images: Images, texts: Texts) -> Float[Tensor, "I T"]:
        """S of equation (6), of any images and any texts."""
        # Texts come last: softmax and sums run down columns, many texts at a time.
        v, t, mask = images.patches, self.queries(texts).transpose(0, 1), texts.mask.T
        s = (v @ t.flatten(0, 1).T).unflatten(-1, mask.shape)  # [I, P, L, T]
        a = self.attend(s, mask)
        gram = v @ v.mT
        seen = ((gram @ a.flatten(2)).view_as(a) * a).sum(1)
        # Of a c that cancels out, the products leave only their rounding.
        least = torch.finfo(v.dtype).eps * gram.diagonal(0, 1, 2).mean(1)
        norms = torch.maximum(seen, least[:, None, None]) * t.square().sum(-1)
        cosines = (a * s).sum(1) * torch.where(norms <= 1e-24, 1.0, norms).rsqrt()
        total = masked_fill_min(self.temp2() * cosines, mask).logsumexp(1)
        words = mask.sum(0)
        if self.aggregation == "mean":
            total = total - words.clamp_min(1).to(total.dtype).log()
        return total.masked_fill(words == 0, 0)

    def queries(self, texts: Texts) -> Float[Tensor, "T L D"]:
        """The words, times all that multiplies (3) before its softmax: the cosines of (6) do not see factors."""
        factor = texts.tokens.shape[-1] ** -0.5 if self.similarity == "scaled" else 1.0
        return texts.tokens * (factor * self.temp1() if self.attention == "paper" else factor)

    def attend(self, s: Float[Tensor, "I P L T"], mask: Bool[Tensor, "*i L T"]) -> Float[Tensor, "I P L T"]:
        """Equation (4), of the products of patches and queries."""
        if self.attention == "code":
            s = self.temp1() * softmax(masked_fill_min(s, mask), 2)
        return softmax(s, 1)


def _pair_size(images: Images, texts: Texts) -> int:
    return 4 * images.patches.shape[1] * texts.mask.shape[1]
