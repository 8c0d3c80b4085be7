"""SPARC: Improving fine-grained understanding in image-text pre-training.

Bica et al., ICML 2024, arXiv 2401.09865 v1, equations (1) to (7) and listing 1.

    s_lp = t_l . v_p                                  similarity, own pair only                    (2)
    shat_lp = (s_lp - min_p s_lp) / (max_p s_lp - min_p s_lp)                                      (3)
    stil_lp = shat_lp where shat_lp >= sigma, else 0; sigma = 1/P
    a_lp = stil_lp / sum_p stil_lp                                                                 (4)
    c_l = sum_p a_lp v_p                              the token's group of patches                 (5)
    L_f = 1/2 [ CE_k(k cos(c_j, t_k)) + CE_k(k cos(t_j, c_k)) ]    k over tokens of the caption    (6)
    L = global_weight * L_g + local_weight * L_f                                                   (7)

Differs from the paper:
- The paper sweeps the local weight over {0.5, 1, 5, 10} and does not say which one it uses. It is 1 here.
- Equation (6) averages per caption, listing 1 per token. `reduction` offers both; the default is the listing's.
- The paper does not state the initial temperature. It is CLIP's 0.07 here.
- Equal similarities make (3) 0/0. Here such a token gives all patches the same weight, as the paper's text intends.

A caption of one token has no negatives; its local loss is exactly zero, as in the equations.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from patchword import distributed
from patchword.contrast import LogitScale, info_nce, logsumexp
from patchword.errors import UserError
from patchword.features import Images, Texts
from patchword.objective import Objective
from patchword.ops import cosine, masked_fill_min, masked_fill_zero, min_max, normalize, softmax


@final
class SPARC(Objective):
    """Sparse fine-grained alignment: a global contrastive loss, and one of each token with its group of patches.

    Args:
        global_weight: Weight of the CLIP loss on the global embeddings.
        local_weight: Weight of the token-level loss.
        weights: How similarities become weights over patches: `sparse` (min-max, then the threshold),
            `minmax` (no threshold) or `softmax` (of the raw similarities), as in the paper's table 8.
        threshold: Min-max similarities below it become 0; null for 1 / number of patches.
        similarity: `dot`, as in the paper, or `cosine`, which ignores the norms of the patches.
        detach_weights: Stop the gradient at the weights. The paper does not stop it.
        negatives: A token's negatives: the other tokens of its caption (`sequence`), or all tokens of the
            batch (`batch`, as in DreamLIP, arXiv 2403.17007) without those of the image's other captions.
        reduction: Mean over all tokens of the batch (`token`, listing 1), or mean over captions of the mean over
            their tokens (`sample`, equation 6; a caption without tokens counts as 0).
        temperature: Initial tau; 1/tau is learned and kept in [1, 100].
        separate_temperature: Learn a second temperature for the local loss. The paper shares one.
    """

    map_measure = "weight"
    multi_positive = True

    def __init__(
        self,
        global_weight: float = 0.5,
        local_weight: float = 1.0,
        weights: Literal["sparse", "minmax", "softmax"] = "sparse",
        threshold: float | None = None,
        similarity: Literal["dot", "cosine"] = "dot",
        detach_weights: bool = False,
        negatives: Literal["sequence", "batch"] = "sequence",
        reduction: Literal["token", "sample"] = "token",
        temperature: float = 0.07,
        separate_temperature: bool = False,
    ) -> None:
        super().__init__()
        if threshold is not None and not 0 <= threshold <= 1:
            raise UserError(f"threshold must lie in [0, 1] (or be null for 1/P), not {threshold}")
        self.global_weight = global_weight
        self.local_weight = local_weight
        self.weights = weights
        self.map_is_pruned = weights == "sparse"
        self.threshold = threshold
        self.similarity = similarity
        self.detach_weights = detach_weights
        self.negatives = negatives
        self.reduction = reduction
        self.scale = LogitScale(temperature)
        self.local_scale = LogitScale(temperature) if separate_temperature else self.scale

    def forward(self, images: Images, texts: Texts) -> dict[str, Float[Tensor, ""]]:
        """The loss terms `global` and `local`."""
        return {  # (7), and (1) as the global term
            "global": self.global_weight * info_nce(cosine, images.pooled, texts.pooled, self.scale()),
            "local": self.local_weight * self.local_loss(images, texts),
        }

    def score(self, images: Images, texts: Texts) -> Float[Tensor, "I T"]:
        """Cosine of the global embeddings."""
        return cosine(images.pooled, texts.pooled)

    def align(self, images: Images, texts: Texts) -> Float[Tensor, "B L P"]:
        """The weights a of equation (4). The row of each selected token sums to 1 over patches."""
        if self.similarity == "cosine":
            s = cosine(texts.tokens, images.patches)
        else:
            s = texts.tokens @ images.patches.mT  # (2)
        if self.weights == "softmax":
            a = softmax(s, -1, images.mask)
        else:
            a = min_max(s, images.mask)  # (3)
            if self.weights == "sparse":
                sigma = 1 / images.count(2) if self.threshold is None else self.threshold
                a = torch.where(a < sigma, 0.0, a)
            a = a / a.sum(-1, keepdim=True)  # (4); the sum is at least 1, because the best patch of a row has 1 in (3)
        return masked_fill_zero(a, texts.mask[..., None])

    def local_loss(self, images: Images, texts: Texts) -> Float[Tensor, ""]:
        """L_f of equation (6), unweighted."""
        images, each = images.per_text(texts), len(texts) // len(images)
        a = self.align(images, texts)
        c = normalize((a.detach() if self.detach_weights else a) @ images.patches)  # (5)
        t = normalize(texts.tokens)
        contrast = _within_caption if self.negatives == "sequence" else partial(_across_batch, each=each)
        k = self.local_scale()
        per_token = contrast(c, t, texts.mask, k).masked_fill(~texts.mask, 0)  # (6)
        if self.reduction == "sample":
            return (per_token.sum(-1) / texts.mask.sum(-1).clamp_min(1)).mean()
        # Divide by the mean number of tokens per rank instead of this rank's own, because DDP averages over ranks.
        return per_token.sum() / distributed.mean_count(texts.mask, per_token.dtype)


def _within_caption(
    x: Float[Tensor, "B L D"], y: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"], k: Float[Tensor, ""]
) -> Float[Tensor, "B L"]:
    """Equation (6) for each token j, among the tokens of its own caption; arbitrary where `mask` is False."""
    z = k * x @ y.mT
    own = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
    ways = (masked_fill_min(logits, mask[..., None]) for logits in (z.mT, z))  # candidates first
    return torch.stack([cross_entropy(logits, own, reduction="none") for logits in ways]).mean(0)


def _across_batch(
    x: Float[Tensor, "T L D"], y: Float[Tensor, "T L D"], mask: Bool[Tensor, "T L"], k: Float[Tensor, ""], each: int
) -> Float[Tensor, "T L"]:
    """Equation (6) for each token j, among the tokens of all captions of all ranks.

    If each image has `each` captions, the other captions of the same image are left out.
    """

    def over(x: Images, y: Texts) -> Float[Tensor, "x K L y"]:
        logits = masked_fill_min(k * x.patches @ y.tokens.flatten(0, 1).T, y.mask.flatten())
        return logits.unflatten(-1, y.mask.shape).logsumexp(-1).unflatten(1, (each, -1))

    length, total = mask.shape[1], -2 * k * (x * y).sum(-1)
    for a, b in ((x, y), (y, x)):
        grouped = a.unflatten(0, (-1, each)).flatten(1, 2)  # [B, K L, D]
        rows, everybody = Images(grouped[:, 0], grouped, (each, length)), Texts(b[:, 0], b, mask)
        total = total + logsumexp(over, rows, everybody, each * length**2).flatten(0, 1)
    return total / 2
