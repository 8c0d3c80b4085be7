"""MGCA: Multi-Granularity Cross-modal Alignment for Generalized Medical Visual Representation Learning.

Wang et al., NeurIPS 2022, arXiv 2210.06044. t_l, v_p: unit token and patch vectors; x, y: unit global vectors. The
letters are ours: we could not verify the numbers of the paper's equations.

    a_lp = softmax_p(W_q t_l . W_k v_p / sqrt(D)),   o_l = W_o sum_p a_lp W_v v_p            words attend to patches (a)
    L_word = 1/2B sum_b sum_l w_bl [ CE_k(t_l.o_k / tau_l) + CE_k(t_k.o_l / tau_l) ]         the target k is l       (b)
    L_patch: the same, with each patch attending to the words of its caption                                         (c)
    q_x = Sinkhorn(exp(C x / eps)),   p_y = softmax(C y / tau_p);   q_y and p_x from y and x   C: K unit prototypes  (d)
    L_proto = -1/2B sum_b sum_k [ q_x log p_y + q_y log p_x ]                                no gradient through q   (e)
    L = global_weight * InfoNCE(x, y; tau_g) + local_weight * (L_word + L_patch) + prototype_weight * L_proto        (f)

The authors' code has no projections by default (`attention: plain` here): a_lp = softmax_p(t_l.v_p / tau_l) and
o_l = sum_p a_lp v_p. o_l is normalized before it is compared.

Differs from the paper:
- In the paper, w is the last layer's attention to the [CLS] token, which a backbone here need not have. The pooled
  embedding replaces it: softmax(cos(pooled, local) / tau_l), with the cosines clipped to their 10 % and 90 %
  quantiles (the code clips the attention itself), without gradient.
- The learned projections are those of torch's attention layer with one head, as in the code, but without biases.
- InfoNCE averages its two directions, as in the paper. The code sums them, which is `global_weight: 2` here.
- Padded words are neither keys nor negatives. In the code they are not keys, but they are negatives.
- The code normalizes o_p with a ResNet and not with a ViT: `normalize_attended`.
- The prototypes are divided by their norm in the forward pass, so that they move along the unit sphere. The code
  overwrites them with unit rows at every step and drops their gradient during the first epoch.
- Sinkhorn uses the samples of all ranks, and computes with logarithms because exp(1 / eps) overflows in half precision.

Patches that attend to the same few words have similar attention outputs, so the minimum of L_patch is well above 0.
This is not a defect.
"""

from __future__ import annotations

import math
from typing import Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from patchword import distributed
from patchword.contrast import LogitScale, info_nce
from patchword.errors import UserError
from patchword.features import Images, Texts
from patchword.objective import Objective
from patchword.ops import cosine, masked_fill_min, normalize, without_padding


@final
class MGCA(Objective):
    """Alignment at three levels: global vectors, words with patches, and clusters of samples.

    Args:
        global_weight: Weight of the contrastive loss on the global embeddings.
        local_weight: Weight of the token-wise loss, words and patches together.
        prototype_weight: Weight of the loss on prototype assignments.
        attention: Attention between words and patches: with `learned` projections (the paper), or a `plain` softmax of
            the cosines, without parameters (the authors' code).
        token_weights: The weight of each word and patch in the loss: its attention from the pooled embedding
            (`pooled`), or the same weight for all (`uniform`, SPARC's baseline).
        normalize_attended: Normalize the attention outputs of patches before they are compared.
        prototypes: Number K of prototypes.
        epsilon: Sharpness of the assignments: smaller is closer to one prototype per sample.
        sinkhorn_iterations: Number of Sinkhorn iterations, which distribute the samples equally over prototypes.
        temperature: tau_g of the global loss.
        local_temperature: tau_l of the token-wise loss and of plain attention.
        prototype_temperature: tau_p of the predicted assignments.
        learn_temperatures: Learn all three, as SPARC's baseline does; the authors' code does not.
    """

    multi_positive = True

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
                raise UserError(f"MGCA's {name} must be 1 or more, not {value}")
        if epsilon <= 0:
            raise UserError(f"MGCA's epsilon must be positive, not {epsilon}")
        self.global_weight = global_weight
        self.local_weight = local_weight
        self.prototype_weight = prototype_weight
        self.attention = attention
        self.token_weights = token_weights
        self.normalize_attended = normalize_attended
        self.prototypes = prototypes
        self.epsilon = epsilon
        self.sinkhorn_iterations = sinkhorn_iterations
        self.scale = LogitScale(temperature, learn_temperatures)
        self.local_scale = LogitScale(local_temperature, learn_temperatures)
        self.prototype_scale = LogitScale(prototype_temperature, learn_temperatures)

    def build(self, embed_dim: int) -> None:
        """Build the prototypes, and the projections if attention is learned."""
        self.centers = nn.Parameter(normalize(torch.randn(self.prototypes, embed_dim)))
        learned = self.attention == "learned"
        self.words = _LearnedAttention(embed_dim) if learned else _PlainAttention()
        self.patches = _LearnedAttention(embed_dim) if learned else _PlainAttention()

    def forward(self, images: Images, texts: Texts) -> dict[str, Float[Tensor, ""]]:
        """The loss terms `global`, `local` and `prototype`."""
        own = images.per_text(texts)
        return {  # (f)
            "global": self.global_weight * info_nce(cosine, images.pooled, texts.pooled, self.scale()),
            "local": self.local_weight * self.local_loss(own, texts),
            "prototype": self.prototype_weight * self.prototype_loss(own.pooled, texts.pooled),
        }

    def score(self, images: Images, texts: Texts) -> Float[Tensor, "I T"]:
        """Cosine of the global embeddings."""
        return cosine(images.pooled, texts.pooled)

    def align(self, images: Images, texts: Texts) -> Float[Tensor, "B L P"]:
        """The attention weights a of words over patches. The row of each selected token sums to 1."""
        a = self.attend(normalize(texts.tokens), normalize(images.patches), images.mask)
        return a.masked_fill(~texts.mask[..., None], 0)

    def local_loss(self, images: Images, texts: Texts) -> Float[Tensor, ""]:
        """L_word + L_patch, unweighted. A caption without words counts as 0, also for the patches of its image."""
        t, v, k, mask = normalize(texts.tokens), normalize(images.patches), self.local_scale(), texts.mask
        captioned = without_padding(mask.any(-1, keepdim=True).expand(v.shape[:2]), images.mask, -1, False)
        words, patches = self.importance(texts.pooled, t, mask), self.importance(images.pooled, v, captioned)
        o = normalize(self.words.read(self.attend(t, v, images.mask), v))
        word = contrast(t, o, mask, words, k)  # (b)
        return word + contrast(v, self.read_words(t, v, mask), captioned, patches, k)  # (c)

    def attend(
        self, t: Float[Tensor, "B L D"], v: Float[Tensor, "B P D"], mask: Bool[Tensor, "B P"] | None
    ) -> Float[Tensor, "B L P"]:
        """a: the attention weights of words over patches, where `mask` is True, or over all patches without a mask."""
        return without_padding(self.words.logits(t, v, self.local_scale()), mask, -1).softmax(-1)  # (a)

    def read_words(
        self, t: Float[Tensor, "B L D"], v: Float[Tensor, "B P D"], mask: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B P D"]:
        """o_p: the attention output of each patch over the words of its caption."""
        logits = masked_fill_min(self.patches.logits(v, t, self.local_scale()), mask[:, None])
        o = self.patches.read(logits.softmax(-1), t)
        return normalize(o) if self.normalize_attended else o

    def importance(
        self, pooled: Float[Tensor, "B D"], local: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"]
    ) -> Float[Tensor, "B N"]:
        """w, without gradient: the weight of each word or patch (a unit vector). It sums to 1; 0 where not `mask`."""
        c = (local.detach() @ normalize(pooled.detach())[..., None]).squeeze(-1)
        if self.token_weights == "pooled":
            valid = c.masked_fill(~mask, torch.nan)
            c = c.clamp(valid.nanquantile(0.1, -1, keepdim=True), valid.nanquantile(0.9, -1, keepdim=True))
        else:
            c = torch.zeros_like(c)
        return masked_fill_min(self.local_scale().detach() * c, mask).softmax(-1).masked_fill(~mask, 0)

    def prototype_loss(self, x: Float[Tensor, "B D"], y: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
        """L_proto: each modality predicts the other's assignment to prototypes."""
        x, y, k = cosine(x, self.centers), cosine(y, self.centers), self.prototype_scale()
        return (cross_entropy(k * y, self.assign(x)) + cross_entropy(k * x, self.assign(y))) / 2  # (e)

    def assign(self, similarity: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """q: each sample's assignment to prototypes, balanced over the samples of all ranks, without gradient."""
        everybody = distributed.gather(similarity.detach())
        return distributed.own(sinkhorn(everybody / self.epsilon, self.sinkhorn_iterations))  # (d)


class _LearnedAttention(nn.Module):
    """One attention head of width D, with four matrices initialized like those of `torch.nn.MultiheadAttention`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        for projection in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(projection.weight, gain=math.sqrt(0.5))  # like a third of one matrix of 3D rows

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
    """1/2B sum_b sum_n w_bn [ CE_m(k x_n.o_m) + CE_m(k x_m.o_n) ] with target m = n, over all m in `mask`."""
    logits = masked_fill_min(k * (x @ o.mT), mask[:, :, None] & mask[:, None, :])
    losses = (logits.logsumexp(1) / 2 + logits.logsumexp(2) / 2) - logits.diagonal(0, 1, 2)  # finite outside the mask
    return (weights * losses).sum(-1).mean()


def sinkhorn(logits: Float[Tensor, "N K"], iterations: int) -> Float[Tensor, "N K"]:
    """exp(logits), scaled in turn so that all K columns have equal sums and that each of the N rows sums to 1."""
    for _ in range(iterations):
        logits = logits - logits.logsumexp(0)
        logits = logits - logits.logsumexp(1, keepdim=True)
    return logits.exp()
