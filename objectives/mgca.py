"""MGCA: Multi-Granularity Cross-modal Alignment for Generalized Medical Visual Representation Learning.

Wang et al., NeurIPS 2022, arXiv 2210.06044. t_l, v_p: unit token and patch vectors; x, y: unit global vectors.

    a_lp = softmax_p(W_q t_l . W_k v_p / sqrt(D)),   o_l = W_o sum_p a_lp W_v v_p                  words read patches
    L_word = 1/2B sum_b sum_l w_bl [ CE_k(t_l.o_k / tau_l) + CE_k(t_k.o_l / tau_l) ]               the right k is l
    L_patch: likewise, each patch reading the words of its caption
    q_x = Sinkhorn(exp(C x / eps)),   p_y = softmax(C y / tau_p);   q_y and p_x likewise           C: K unit prototypes
    L_proto = -1/2B sum_b sum_k [ q_x log p_y + q_y log p_x ]                                      no gradient through q
    L = global_weight * InfoNCE(x, y; tau_g) + local_weight * (L_word + L_patch) + prototype_weight * L_proto

The authors' code has no projections by default (`attention: plain` here): a_lp = softmax_p(t_l.v_p / tau_l) and
o_l = sum_p a_lp v_p. o_l is normalised before it is compared.

Differs from the paper:
- w is the last layer's attention to the [CLS] token, which a backbone here need not have. The pooled embedding takes
  its place: softmax(cos(pooled, local) / tau_l), the cosines clipped to their 10 % and 90 %
  quantiles (the code clips the attention itself), without gradient.
- The learned projections are those of torch's attention layer with one head, which the code holds for it, less biases.
- InfoNCE averages its two directions, as in the paper; the code sums them: that is `global_weight: 2`.
- Padded words are neither read nor negatives. In the code they are no keys but stay negatives.
- The code normalises o_p with a ResNet and not with a ViT: `normalize_attended`.
- The prototypes are divided by their norm in the forward pass, so that they learn along the unit sphere. The code
  overwrites them with unit rows at every step and drops their gradient during the first epoch.
- Sinkhorn sees the samples of all ranks, and works on logarithms: exp(1 / eps) does not fit half precision.
- The patches of an image that read the same few words look alike: L_patch has a floor well above 0. Not a defect.
"""

from __future__ import annotations

import math
from typing import Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from patchword import distributed
from patchword.contrast import Scale, info_nce
from patchword.errors import InputError
from patchword.features import Images, Texts
from patchword.objective import Objective
from patchword.ops import cosine, masked_fill_min, normalize


@final
class MGCA(Objective):
    """Alignment at three levels: whole samples, words with patches, and clusters of samples.

    Args:
        global_weight: Weight of the contrastive loss on the global embeddings.
        local_weight: Weight of the token-wise loss, words and patches together.
        prototype_weight: Weight of the loss on prototype assignments.
        attention: How words read patches and patches words: through `learned` projections (the paper), or `plain`
            softmax of the cosines, without parameters (the authors' code).
        token_weights: How much each word and patch counts: its attention from the pooled embedding (`pooled`), or
            all the same (`uniform`, SPARC's baseline).
        normalize_attended: Normalise what a patch has read before it is compared.
        prototypes: Number K of prototypes.
        epsilon: Sharpness of the assignments: smaller is closer to one prototype per sample.
        sinkhorn_iterations: Rounds in which prototypes share the samples equally.
        temperature: tau_g of the global loss.
        local_temperature: tau_l of the token-wise loss and of plain attention.
        prototype_temperature: tau_p of the predicted assignments.
        learn_temperatures: Learn all three, as SPARC's baseline does; the authors' code keeps them.
    """

    def __init__(
        self,
        global_weight: float = 1.0,
        local_weight: float = 1.0,
        prototype_weight: float = 1.0,
        attention: Literal["learned", "plain"] = "learned",
        token_weights: Literal["pooled", "uniform"] = "pooled",
        normalize_attended: bool = True,
        prototypes: int = 500,
        epsilon: float = 0.05,
        sinkhorn_iterations: int = 3,
        temperature: float = 0.07,
        local_temperature: float = 0.1,
        prototype_temperature: float = 0.2,
        learn_temperatures: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("prototypes", prototypes), ("sinkhorn_iterations", sinkhorn_iterations)):
            if value < 1:
                raise InputError(f"MGCA's {name} must be 1 or more, not {value}")
        if epsilon <= 0:
            raise InputError(f"MGCA's epsilon must be positive, not {epsilon}")
        self.global_weight = global_weight
        self.local_weight = local_weight
        self.prototype_weight = prototype_weight
        self.attention = attention
        self.token_weights = token_weights
        self.normalize_attended = normalize_attended
        self.prototypes = prototypes
        self.epsilon = epsilon
        self.sinkhorn_iterations = sinkhorn_iterations
        self.scale = Scale(temperature, learn_temperatures)
        self.local_scale = Scale(local_temperature, learn_temperatures)
        self.prototype_scale = Scale(prototype_temperature, learn_temperatures)

    def setup(self, embed_dim: int) -> None:
        """The prototypes, and the projections where attention is learned."""
        self.centres = nn.Parameter(normalize(torch.randn(self.prototypes, embed_dim)))
        learned = self.attention == "learned"
        self.words = _LearnedAttention(embed_dim) if learned else _PlainAttention()
        self.patches = _LearnedAttention(embed_dim) if learned else _PlainAttention()

    def forward(self, images: Images, texts: Texts) -> dict[str, Float[Tensor, ""]]:
        """The terms `global`, `local` and `prototype`."""
        return {
            "global": self.global_weight * info_nce(cosine, images.pooled, texts.pooled, self.scale()),
            "local": self.local_weight * self.local_loss(images, texts),
            "prototype": self.prototype_weight * self.prototype_loss(images.pooled, texts.pooled),
        }

    def score(self, images: Images, texts: Texts) -> Float[Tensor, "I T"]:
        """Cosine of the global embeddings."""
        return cosine(images.pooled, texts.pooled)

    def align(self, images: Images, texts: Texts) -> Float[Tensor, "B L P"]:
        """The weights a with which words read patches: each row of a selected token sums to 1."""
        t, v = normalize(texts.tokens), normalize(images.patches)
        return self.words.logits(t, v, self.local_scale()).softmax(-1).masked_fill(~texts.mask[..., None], 0)

    def local_loss(self, images: Images, texts: Texts) -> Float[Tensor, ""]:
        """L_word + L_patch, unweighted. A caption without words counts as 0, and so do the patches of its image."""
        t, v, k, mask = normalize(texts.tokens), normalize(images.patches), self.local_scale(), texts.mask
        told = mask.any(-1, keepdim=True).expand(v.shape[:2])
        words, patches = self.importance(texts.pooled, t, mask), self.importance(images.pooled, v, told)
        o = normalize(self.words.read(self.align(images, texts), v))
        return contrast(t, o, mask, words, k) + contrast(v, self.read_words(t, v, mask), told, patches, k)

    def read_words(
        self, t: Float[Tensor, "B L D"], v: Float[Tensor, "B P D"], mask: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B P D"]:
        """o_p: what each patch reads from the words of its caption."""
        logits = masked_fill_min(self.patches.logits(v, t, self.local_scale()), mask[:, None])
        o = self.patches.read(logits.softmax(-1), t)
        return normalize(o) if self.normalize_attended else o

    def importance(
        self, pooled: Float[Tensor, "B D"], local: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"]
    ) -> Float[Tensor, "B N"]:
        """w, without gradient: how much each word or patch (a unit vector) counts; sums to 1, 0 where not `mask`."""
        c = (local.detach() @ normalize(pooled.detach())[..., None]).squeeze(-1)
        if self.token_weights == "pooled":
            valid = c.masked_fill(~mask, torch.nan)
            c = c.clamp(valid.nanquantile(0.1, -1, keepdim=True), valid.nanquantile(0.9, -1, keepdim=True))
        else:
            c = torch.zeros_like(c)
        return masked_fill_min(self.local_scale().detach() * c, mask).softmax(-1).masked_fill(~mask, 0)

    def prototype_loss(self, x: Float[Tensor, "B D"], y: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
        """L_proto: each modality predicts the other's assignment to prototypes."""
        x, y, k = cosine(x, self.centres), cosine(y, self.centres), self.prototype_scale()
        return (cross_entropy(k * y, self.assign(x)) + cross_entropy(k * x, self.assign(y))) / 2

    def assign(self, similarity: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """q: each sample's shares in the prototypes, balanced over the samples of all ranks, without gradient."""
        everybody = distributed.gather(similarity.detach())
        return distributed.own(sinkhorn(everybody / self.epsilon, self.sinkhorn_iterations))


class _LearnedAttention(nn.Module):
    """One head of attention, as wide as the space; the four matrices start as `torch.nn.MultiheadAttention`'s do."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        for projection in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(projection.weight, gain=math.sqrt(0.5))  # as a third of one matrix of 3D rows

    def logits(self, x: Float[Tensor, "B X D"], y: Float[Tensor, "B Y D"], k: Tensor) -> Float[Tensor, "B X Y"]:
        return self.query(x) @ self.key(y).mT / math.sqrt(x.shape[-1])

    def read(self, a: Float[Tensor, "B X Y"], y: Float[Tensor, "B Y D"]) -> Float[Tensor, "B X D"]:
        return self.output(a @ self.value(y))


class _PlainAttention(nn.Module):
    """Softmax of the cosines at temperature 1/k, without parameters."""

    def logits(self, x: Float[Tensor, "B X D"], y: Float[Tensor, "B Y D"], k: Tensor) -> Float[Tensor, "B X Y"]:
        return k * x @ y.mT

    def read(self, a: Float[Tensor, "B X Y"], y: Float[Tensor, "B Y D"]) -> Float[Tensor, "B X D"]:
        return a @ y


def contrast(
    x: Float[Tensor, "B N D"],
    o: Float[Tensor, "B N D"],
    mask: Bool[Tensor, "B N"],
    weights: Float[Tensor, "B N"],
    k: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """1/2B sum_b sum_n w_bn [ CE_m(k x_n.o_m) + CE_m(k x_m.o_n) ], m = n the right one, m over the real ones."""
    logits = masked_fill_min(k * x @ o.mT, mask[:, :, None] & mask[:, None, :])
    losses = (logits.logsumexp(1) / 2 + logits.logsumexp(2) / 2) - logits.diagonal(0, 1, 2)  # finite where not real
    return (weights * losses).sum(-1).mean()


def sinkhorn(logits: Float[Tensor, "N K"], iterations: int) -> Float[Tensor, "N K"]:
    """exp(logits) scaled so that all K prototypes share the N samples equally, then that each sample has 1 to give."""
    for _ in range(iterations):
        logits = logits - logits.logsumexp(0)
        logits = logits - logits.logsumexp(1, keepdim=True)
    return logits.exp()
