"""beta-CLIP: Text-Conditioned Contrastive Learning for Multi-Granular Vision-Language Alignment.

Zohra et al., CVPR 2026, arXiv 2512.12678; the pooler and the targets as in the authors' training script for the
cross-entropy (`train_CE.sh`), or, with `loss: bce`, in that for the binary cross-entropy (`train_BCE.sh`). We have not
read the paper, so the letters are ours. Each image b has K texts t_bk, such as its caption, sentences and phrases. All
t and p are unit vectors.

    q = W_q t + b_q,   k_ip = W_k p_ip + b_k,   u_ip = W_v p_ip + b_v         p_ip: patches, t: a global text vector
    a_ip = softmax_p(q.k_ip / sqrt(d))                                        in each head of width d              (a)
    o = W_o [sum_p a_ip u_ip, all heads] + b_o,   v(i|t) = o + MLP(LN(o))     image i pooled by text t             (b)
    S_bkm = k cos(v(b|t_bk), t_bm)                     [B, K, K], image b pooled by its text k, with its text m    (c)
    Z_i,jm = k cos(v(i|t_jm), t_jm)                    [B, B K], every image pooled by the text it is scored with  (d)
    w_km = 1 if k = m, else beta;  divided by 1 + (K - 1) beta
    R(b,k) = -sum_m w_km log( exp S_bkm / (sum_m' exp S_bkm' + sum_{j!=b,m'} exp Z_b,jm') )   vector to texts      (e)
    C(b,k) = -sum_m w_km log( exp S_bmk / (sum_m' exp S_bm'k + sum_{i!=b} exp Z_i,bk) )       text to vectors      (f)
    L_t = 1/2 mean_bk [ R(b,k) + C(b,k) ],   L_g = InfoNCE of cos(x_i, t_jm)                  x_i: global image
    L = text_conditioned_weight * L_t + global_weight * L_g                                                        (g)

With `loss: bce`, every vector is compared with every text on its own, and the mean is over all B K x B K pairs. All
texts of an image are right for its vectors; beta is the weight of those that have not pooled the vector:

    L_t = 1/(B K)^2 sum_bk { sum_m b_km log(1 + exp -S_bkm) + sum_{j!=b,m} log(1 + exp Z_b,jm) }                   (h)
    b_km = 1 if k = m, else beta

Differs from the code:
- `pooling: own` is the code's loss: image b is pooled by its own texts only, and v(b|t_bk) is compared with the texts
  of all images. It contains information about t_bk, so the correct text can be found without the image. Here the texts
  of other images are scored with vectors that they have pooled themselves, (d), as in FLAIR. For an image's own texts
  the comparison remains the code's, (c): with (d) alone, the mean of R over k would be the same for every beta.
- With `pairwise` pooling, C has one vector of every other image. The code has K of them. In (h) it counts K times.
- The code's global loss is on one text of each image, its caption: `global_texts: first`. Here the K texts of an image
  have no order, so all of them are positives of the global loss, and they are no negatives of each other.
- The code pads images that have fewer texts, and keeps the padding in the denominators. Here every image has K texts.
- The code's text-conditioned loss is that of each rank alone. Here it is over the texts of all ranks.

`align` is not in the paper. It uses each token as the query, as the loss uses the global text vector, and averages a
over heads. A row sums to 1.
"""

from __future__ import annotations

import math
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from patchword import distributed
from patchword.contrast import LogitScale, info_nce, log_sum_exps, sigmoid_loss, tiled
from patchword.errors import UserError
from patchword.features import Images, Texts
from patchword.objective import Objective
from patchword.ops import attend, cosine, normalize, quick_gelu, with_mask, without_padding


@final
class BetaCLIP(Objective):
    """Contrastive losses on patches pooled by each text, with soft targets, and on the global embeddings.

    Args:
        text_conditioned_weight: Weight of the loss on text-conditioned image vectors.
        global_weight: Weight of the loss on the global embeddings.
        beta: The target of an image's other texts, relative to that of the text that has pooled the image, in [0, 1].
            With `loss: bce` it is their weight. It has no effect if each image has one text.
        pooling: Negatives are images pooled by the text with which they are scored (`pairwise`), or, as in the code,
            images pooled by their `own` texts, which leaks the correct text into the loss. Scores are always pairwise.
        loss: The text-conditioned loss: a cross-entropy with soft targets (`ce`), or a binary cross-entropy (`bce`).
        global_texts: Texts of the global loss: `all` texts of an image, or, as in the code, only its `first` one.
        heads: Number of attention heads of the pooler; must divide the width of the shared space.
        temperature: Initial tau of both losses. Each of them learns its own 1/tau, kept in [1, 100].
    """

    map_measure = "weight"
    uses_local_features = True
    multi_positive = True

    def __init__(
        self,
        text_conditioned_weight: float = 1.0,
        global_weight: float = 1.0,
        beta: float = 0.5,
        pooling: Literal["pairwise", "own"] = "pairwise",
        loss: Literal["ce", "bce"] = "ce",
        global_texts: Literal["all", "first"] = "all",
        heads: int = 8,
        temperature: float = 0.07,
    ) -> None:
        super().__init__()
        if not 0 <= beta <= 1:
            raise UserError(f"BetaCLIP's beta must lie in [0, 1], not {beta}")
        if heads < 1:
            raise UserError(f"BetaCLIP's heads must be 1 or more, not {heads}")
        self.text_conditioned_weight = text_conditioned_weight
        self.global_weight = global_weight
        self.beta = beta
        self.pooling = pooling
        self.loss = loss
        self.global_texts = global_texts
        self.heads = heads
        self.scale = LogitScale(temperature)
        self.conditioned_scale = LogitScale(temperature)

    def build(self, embed_dim: int) -> None:
        """Build the pooler, initialized like `torch.nn.MultiheadAttention` and `torch.nn.Linear`."""
        if embed_dim % self.heads:
            raise UserError(f"BetaCLIP's heads must divide embed_dim: {embed_dim} is not a multiple of {self.heads}")
        self.query, self.key, self.value = (_input_projection(embed_dim) for _ in range(3))
        self.output = nn.Linear(embed_dim, embed_dim)
        nn.init.zeros_(self.output.bias)
        self.norm = nn.LayerNorm(embed_dim)
        self.expand, self.contract = nn.Linear(embed_dim, 4 * embed_dim), nn.Linear(4 * embed_dim, embed_dim)

    def forward(self, images: Images, texts: Texts) -> dict[str, Float[Tensor, ""]]:
        """The loss terms `text_conditioned` and `global`."""
        captions = texts.pooled if self.global_texts == "all" else texts.pooled[:: len(texts) // len(images)]
        return {  # (g)
            "text_conditioned": self.text_conditioned_weight * self.text_conditioned_loss(images, texts),
            "global": self.global_weight * info_nce(cosine, images.pooled, captions, self.scale()),
        }

    def score(self, images: Images, texts: Texts) -> Float[Tensor, "I T"]:
        """cos(v(i|t_j), t_j), with each image pooled by each text."""
        t = normalize(texts.pooled)
        return tiled(self._score, self._keys_and_values(images), t, self._pair_size(t))

    def align(self, images: Images, texts: Texts) -> Float[Tensor, "B L P"]:
        """The attention weights a with each token as the query, averaged over heads. Rows sum to 1."""
        keys = self._keys_and_values(images)[:, 0]
        queries = self._split(self.query(normalize(texts.tokens)))
        a = without_padding(queries @ keys.mT / math.sqrt(keys.shape[-1]), images.mask, -1).softmax(-1)  # (a)
        return a.mean(1).masked_fill(~texts.mask[..., None], 0)

    def text_conditioned_loss(self, images: Images, texts: Texts) -> Float[Tensor, ""]:
        """L_t, unweighted."""
        k, t = self.conditioned_scale(), normalize(texts.pooled)
        own = t.unflatten(0, (len(images), -1))
        keys_and_values = self._keys_and_values(images)
        if own.shape[1] == 1 and (self.loss, self.pooling) == ("ce", "pairwise"):  # (c) is the diagonal of (d)
            return info_nce(self._score, keys_and_values, t, k, self._pair_size(t))  # (e), (f)
        v = normalize(self._pool(keys_and_values, own))
        s = k * v @ own.mT  # (c)
        if self.loss == "bce":
            return self._binary(s, v, keys_and_values, t, k)
        if self.pooling == "own":  # one text for each vector; the siblings of a text are among the other texts
            over_texts, over_images = log_sum_exps(cosine, v.flatten(0, 1), t, k)
        else:
            over_texts, over_images = log_sum_exps(self._score, keys_and_values, t, k, self._pair_size(t))  # (d)
            is_self = torch.eye(s.shape[-1], dtype=torch.bool, device=s.device)
            siblings = s.masked_fill(is_self, torch.finfo(s.dtype).min)
            over_texts = torch.logaddexp(over_texts, siblings.logsumexp(2))  # (e)
            over_images = torch.logaddexp(over_images, siblings.logsumexp(1))  # (f)
        total = (1 - self.beta) * s.diagonal(dim1=1, dim2=2).sum() + self.beta * s.sum()
        target = total / (1 + (s.shape[-1] - 1) * self.beta) / len(t)  # the mean over k and b of sum_m w_km S_bkm
        return (over_texts.mean() + over_images.mean()) / 2 - target

    def _binary(
        self,
        s: Float[Tensor, "B K K"],
        v: Float[Tensor, "B K D"],
        keys_and_values: Float[Tensor, "B N H P d"],
        t: Float[Tensor, "T D"],
        k: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        """L_t of equation (h)."""
        itself = s.diagonal(dim1=1, dim2=2)
        if self.pooling == "own":
            own, count, total = s, 1, len(t) * sigmoid_loss(cosine, v.flatten(0, 1), t, k, 0.0)
        else:
            total = len(s) * sigmoid_loss(self._score, keys_and_values, t, k, 0.0, self._pair_size(t))
            own, count = itself, s.shape[-1]
        wrong = count * (total + itself.sum() - softplus(own).sum())  # in the total, only `itself` is right
        first = softplus(-itself).sum()
        right = first + self.beta * (softplus(-s).sum() - first)
        return (right + wrong) / (len(t) ** 2 * distributed.world_size())

    def _score(self, images: Float[Tensor, "I N H P d"], t: Float[Tensor, "T D"]) -> Float[Tensor, "I T"]:
        """cos(v(i|t_j), t_j) from the images' keys and values and normalized texts."""
        return torch.einsum("itd,td->it", normalize(self._pool(images, t)), t)

    def _pool(self, images: Float[Tensor, "I N H P d"], t: Float[Tensor, "*I T D"]) -> Float[Tensor, "I T D"]:
        """v(i|t): each image pooled by each text, or by each of its own texts if `t` has three dimensions."""
        queries = self._split(self.query(t)).expand(len(images), -1, -1, -1)
        heads = attend(queries, images)  # (a)
        o = self.output(heads.transpose(1, 2).flatten(2))
        return o + self.contract(quick_gelu(self.expand(self.norm(o))))  # (b)

    def _keys_and_values(self, images: Images) -> Float[Tensor, "I N H P d"]:
        """Keys and values of the normalized patches of each image, for `attend`."""
        p = normalize(images.patches)
        return with_mask(torch.stack([self._split(self.key(p)), self._split(self.value(p))], 1), images.mask)

    @staticmethod
    def _pair_size(t: Float[Tensor, "T D"]) -> int:
        return 15 * t.shape[1]  # the heads' outputs, o, LN(o), 4 D twice in the MLP, its result, v, and its cosine

    def _split(self, x: Float[Tensor, "*n N D"]) -> Float[Tensor, "*n H N d"]:
        """Split the width into the heads."""
        return x.unflatten(-1, (self.heads, -1)).transpose(-2, -3)


def _input_projection(dim: int) -> nn.Linear:
    """W x + b, initialized like a third of the one matrix of 3D rows that torch's attention has."""
    projection = nn.Linear(dim, dim)
    nn.init.xavier_uniform_(projection.weight, gain=math.sqrt(0.5))
    nn.init.zeros_(projection.bias)
    return projection
