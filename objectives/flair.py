"""FLAIR: VLM with Fine-grained Language-informed Image Representations.

Xiao et al., CVPR 2025, arXiv 2412.03561; the pooler as in the authors' code. The letters are ours: we could not verify
the numbers of the paper's equations. S(Z) is its text-conditioned sigmoid loss, S(G) its multi-positive sigmoid loss.

    q_j = W_q LN(t_j) + b_q,   k_ip = W_k LN(v_ip) + b_k,   u_ip = W_v LN(v_ip) + b_v  t_j: the text's global vector (a)
    a_ijp = exp(q_j.k_ip / sqrt(d)) / (1 + sum_p' exp(q_j.k_ip' / sqrt(d)))            in each head of width d       (b)
    v_ij = W_o [sum_p a_ijp u_ip, all heads] + b_o                                     image i pooled by text j      (c)
    Z_ij = k cos(v_ij, t_j) + b,   G_ij = k cos(x_i, t_j) + b                         x_i: the image's global vector (d)
    S(Z) = -1/B sum_ij log sigmoid(z_ij Z_ij),   z_ij = 1 if i = j, else -1                                          (e)
    L = text_conditioned_weight * S(Z) + global_weight * S(G)                                                        (f)

The 1 in the denominator of a is an empty key and value, zero after the projections: a text that matches nothing in the
image can attend to no patch. The query is always the text that is scored. If it were the image's own text, positives
could be identified by cos(v_ii, t_j) from the texts alone.

Differs from the paper:
- With K texts for each image (the paper's sub-captions of a long caption) all K are positives of both losses, as in the
  paper. All texts of other images are negatives of the text-conditioned loss, while the paper draws one of each.
- Both losses divide by B, as in SigLIP; we have not verified the paper's divisor. The code divides by the number of
  texts that an image is compared with: B + K - 1 in the text-conditioned loss, which draws negatives, and B K in the
  global one. `normalizer: texts` does the same. (On several ranks the code's B is that of one rank.)
- k starts at 10, as in SigLIP; the code starts at 1/0.07 = 14.3.
- The three layer norms are the code's: keys and values have one each.
- `align` uses each token as the query, as the loss uses the global text vector, and averages over heads. A row sums to
  1 minus the weight of the empty key.
"""

from __future__ import annotations

import math
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from patchword import distributed
from patchword.contrast import LogitScale, sigmoid_loss, tiled
from patchword.errors import UserError
from patchword.features import Images, Texts
from patchword.objective import Objective
from patchword.ops import attend, cosine, normalize, with_mask, without_padding


@final
class FLAIR(Objective):
    """Pairwise sigmoid losses on patches pooled by each text, and on the global embeddings.

    Args:
        text_conditioned_weight: Weight of the loss on text-conditioned image vectors.
        global_weight: Weight of the loss on the global embeddings.
        heads: Number of attention heads of the pooler; must divide the width of the shared space.
        temperature: Initial tau; 1/tau is learned, shared by both losses and kept in [1, 100].
        bias: Initial b, learned and shared by both losses.
        normalizer: Both losses are divided by the number B of `images`, or, as in the code, by numbers of `texts`:
            B + K - 1 and B K. All are B if each image has one text.
    """

    uses_local_features = True
    multi_positive = True

    def __init__(
        self,
        text_conditioned_weight: float = 0.5,
        global_weight: float = 0.5,
        heads: int = 8,
        temperature: float = 0.1,
        bias: float = -10.0,
        normalizer: Literal["images", "texts"] = "images",
    ) -> None:
        super().__init__()
        if heads < 1:
            raise UserError(f"FLAIR's heads must be 1 or more, not {heads}")
        self.text_conditioned_weight = text_conditioned_weight
        self.global_weight = global_weight
        self.heads = heads
        self.scale = LogitScale(temperature)
        self.bias = nn.Parameter(torch.tensor([float(bias)]))  # one dimension, because sharding splits the first one
        self.normalizer = normalizer

    def build(self, embed_dim: int) -> None:
        """Build the pooler's projections, initialized like those of `torch.nn.MultiheadAttention`."""
        if embed_dim % self.heads:
            raise UserError(f"FLAIR's heads must divide embed_dim: {embed_dim} is not a multiple of {self.heads}")
        self.query, self.key, self.value = (_norm_and_project(embed_dim) for _ in range(3))
        self.output = nn.Linear(embed_dim, embed_dim)
        nn.init.zeros_(self.output.bias)

    def forward(self, images: Images, texts: Texts) -> dict[str, Float[Tensor, ""]]:
        """The loss terms `text_conditioned` and `global`."""
        k, b = self.scale(), self.bias.squeeze()
        # (d) and (e)
        asked = sigmoid_loss(self._score, self._keys_and_values(images), texts.pooled, k, b, self._pair_size(texts))
        whole = sigmoid_loss(cosine, images.pooled, texts.pooled, k, b)
        if self.normalizer == "texts":
            each, total = len(texts) // len(images), len(images) * distributed.world_size()
            asked, whole = asked * total / (total + each - 1), whole / each
        # (f)
        return {"text_conditioned": self.text_conditioned_weight * asked, "global": self.global_weight * whole}

    def score(self, images: Images, texts: Texts) -> Float[Tensor, "I T"]:
        """cos(v_ij, t_j), with each image pooled by each text."""
        return tiled(self._score, self._keys_and_values(images), texts.pooled, self._pair_size(texts))

    def align(self, images: Images, texts: Texts) -> Float[Tensor, "B L P"]:
        """The attention weights a with each token as the query, averaged over heads. Rows sum to less than 1."""
        keys = self._keys_and_values(images)[:, 0]
        queries = self._split(self.query(texts.tokens))
        a = without_padding(queries @ keys.mT / math.sqrt(keys.shape[-1]), images.mask, -1).softmax(-1)
        return a[..., :-1].mean(1).masked_fill(~texts.mask[..., None], 0)

    def _score(self, images: Float[Tensor, "I N H K d"], texts: Float[Tensor, "T D"]) -> Float[Tensor, "I T"]:
        """cos(v_ij, t_j) from the images' keys and values."""
        queries = self._split(self.query(texts)).expand(len(images), -1, -1, -1)  # (a)
        heads = attend(queries, images)  # (b)
        v = normalize(self.output(heads.transpose(1, 2).flatten(2)))  # (c)
        return torch.einsum("itd,td->it", v, normalize(texts))

    def _keys_and_values(self, images: Images) -> Float[Tensor, "I N H K d"]:
        """Keys and values of each image for `attend`, K = P + 1. The last key and value are the empty ones."""
        projected = torch.stack([self.key(images.patches), self.value(images.patches)], 1)  # (a)
        return with_mask(self._split(pad(projected, (0, 0, 0, 1))), images.mask)

    @staticmethod
    def _pair_size(texts: Texts) -> int:
        return 4 * texts.pooled.shape[1]  # the heads' outputs, v, normalized v, and the products of its cosine

    def _split(self, x: Float[Tensor, "*n N D"]) -> Float[Tensor, "*n H N d"]:
        """Split the width into the heads."""
        return x.unflatten(-1, (self.heads, -1)).transpose(-2, -3)


def _norm_and_project(dim: int) -> nn.Sequential:
    """W LN(x) + b."""
    projection = nn.Linear(dim, dim)
    nn.init.xavier_uniform_(projection.weight, gain=math.sqrt(0.5))  # like a third of one matrix of 3D rows
    nn.init.zeros_(projection.bias)
    return nn.Sequential(nn.LayerNorm(dim), projection)
