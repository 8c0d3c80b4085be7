"""FLAIR: VLM with Fine-grained Language-informed Image Representations.

Xiao et al., CVPR 2025, arXiv 2412.03561; the pooler as in the authors' code.

    q_j = W_q LN(t_j) + b_q,   k_ip = W_k LN(v_ip) + b_k,   u_ip = W_v LN(v_ip) + b_v     t_j: the text's global vector
    a_ijp = exp(q_j.k_ip / sqrt(d)) / (1 + sum_p' exp(q_j.k_ip' / sqrt(d)))               in each head of width d
    v_ij = W_o [sum_p a_ijp u_ip, all heads] + b_o                                        image i as text j asks for it
    Z_ij = k cos(v_ij, t_j) + b,   G_ij = k cos(x_i, t_j) + b                             x_i: the image's global vector
    L = text_conditioned_weight * S(Z) + global_weight * S(G)
    S(Z) = -1/B sum_ij log sigmoid(z_ij Z_ij),   z_ij = 1 if i = j, else -1

The 1 in a's denominator is an empty key and value, zero after the projections: a text that asks for nothing in the
image may look at none of it. The query is always the text that is scored. Were it the image's own text, cos(v_ii, t_j)
could be told from the texts alone.

Differs from the paper:
- With K texts for each image (the paper's sub-captions of a long caption) all K are positives of both losses, as in the
  paper; the text-conditioned loss then has all texts of other images as negatives, and draws none.
- The three layer norms are the code's: keys and values have one each.
- `align` asks with each token what the loss asks with the whole text, and averages over heads. The empty key takes
  what is missing from a row's sum to 1.
"""

from __future__ import annotations

import math
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from patchword.contrast import Scale, sigmoid_loss, tiled
from patchword.errors import InputError
from patchword.features import Images, Texts
from patchword.objective import Objective
from patchword.ops import cosine, normalize


@final
class FLAIR(Objective):
    """Pairwise sigmoid losses on patches pooled as each text asks for them, and on the global embeddings.

    Args:
        text_conditioned_weight: Weight of the loss on text-conditioned image vectors.
        global_weight: Weight of the loss on the global embeddings.
        heads: Attention heads of the pooler; must divide the width of the shared space.
        temperature: Initial tau; 1/tau is learned, shared by both losses and kept in [1, 100].
        bias: Initial b, learned and shared by both losses.
    """

    local_score = True
    many_captions = True

    def __init__(
        self,
        text_conditioned_weight: float = 0.5,
        global_weight: float = 0.5,
        heads: int = 8,
        temperature: float = 0.1,
        bias: float = -10.0,
    ) -> None:
        super().__init__()
        if heads < 1:
            raise InputError(f"FLAIR's heads must be 1 or more, not {heads}")
        self.text_conditioned_weight = text_conditioned_weight
        self.global_weight = global_weight
        self.heads = heads
        self.scale = Scale(temperature)
        self.bias = nn.Parameter(torch.tensor([float(bias)]))  # one dimension, since sharding splits along the first

    def setup(self, embed_dim: int) -> None:
        """The pooler's maps of width D, with the initial values of `torch.nn.MultiheadAttention`."""
        if embed_dim % self.heads:
            raise InputError(f"FLAIR's heads must divide embed_dim: {embed_dim} is no multiple of {self.heads}")
        self.query, self.key, self.value = (_norm_and_project(embed_dim) for _ in range(3))
        self.output = nn.Linear(embed_dim, embed_dim)
        nn.init.zeros_(self.output.bias)

    def forward(self, images: Images, texts: Texts) -> dict[str, Float[Tensor, ""]]:
        """The terms `text_conditioned` and `global`."""
        k, b = self.scale(), self.bias.squeeze()
        asked = sigmoid_loss(self._score, self._keys_and_values(images), texts.pooled, k, b, self._pair_size(texts))
        whole = sigmoid_loss(cosine, images.pooled, texts.pooled, k, b)
        return {"text_conditioned": self.text_conditioned_weight * asked, "global": self.global_weight * whole}

    def score(self, images: Images, texts: Texts) -> Float[Tensor, "I T"]:
        """cos(v_ij, t_j): each image pooled as each text asks for it."""
        return tiled(self._score, self._keys_and_values(images), texts.pooled, self._pair_size(texts))

    def align(self, images: Images, texts: Texts) -> Float[Tensor, "B L P"]:
        """The weights a with each token as the query, averaged over heads: rows sum to less than 1."""
        keys, _ = self._keys_and_values(images).unbind(1)
        queries = self._split(self.query(texts.tokens))
        a = (queries @ keys.mT / math.sqrt(keys.shape[-1])).softmax(-1)
        return a[..., :-1].mean(1).masked_fill(~texts.mask[..., None], 0)

    def _score(self, images: Float[Tensor, "I 2 H K d"], texts: Float[Tensor, "T D"]) -> Float[Tensor, "I T"]:
        """cos(v_ij, t_j) from the images' keys and values."""
        keys, values = images.unbind(1)
        queries = self._split(self.query(texts)).expand(len(images), -1, -1, -1)
        heads = scaled_dot_product_attention(queries, keys, values)
        v = normalize(self.output(heads.transpose(1, 2).flatten(2)))
        return torch.einsum("itd,td->it", v, normalize(texts))

    def _keys_and_values(self, images: Images) -> Float[Tensor, "I 2 H K d"]:
        """What a text may ask of each image, K = P + 1: the last key and value are the empty ones."""
        projected = torch.stack([self.key(images.patches), self.value(images.patches)], 1)
        return self._split(pad(projected, (0, 0, 0, 1)))

    @staticmethod
    def _pair_size(texts: Texts) -> int:
        return 4 * texts.pooled.shape[1]  # the heads' answers, v, v normalised, and the products of its cosine

    def _split(self, x: Float[Tensor, "*n N D"]) -> Float[Tensor, "*n H N d"]:
        """Each head's share of the width."""
        return x.unflatten(-1, (self.heads, -1)).transpose(-2, -3)


def _norm_and_project(dim: int) -> nn.Sequential:
    """W LN(x) + b."""
    projection = nn.Linear(dim, dim)
    nn.init.xavier_uniform_(projection.weight, gain=math.sqrt(0.5))  # as a third of one matrix of 3D rows
    nn.init.zeros_(projection.bias)
    return nn.Sequential(nn.LayerNorm(dim), projection)
