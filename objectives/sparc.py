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
- The paper sweeps the local weight over {0.5, 1, 5, 10} and does not say which it kept: 1 here.
- Equation (6) averages per caption, listing 1 per token: `reduction` offers both, the listing's by default.
- The initial temperature is not stated: CLIP's 0.07 here.
- Equal similarities make (3) 0/0: here such a token weighs all patches alike, as the paper's text intends.
- A caption of one token has no negatives; its local loss is exactly zero, as in the equations.
"""

from __future__ import annotations

from typing import Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from patchword import distributed
from patchword.contrast import Scale, info_nce, logsumexp
from patchword.errors import InputError
from patchword.features import Images, Texts
from patchword.objective import Objective
from patchword.ops import cosine, masked_fill_min, min_max, normalize, softmax


@final
class SPARC(Objective):
    """Sparse fine-grained contrastive alignment: a global loss, and each token against its group of patches.

    Args:
        global_weight: Weight of the CLIP loss on the global embeddings.
        local_weight: Weight of the token-level loss.
        weights: How similarities become weights over patches: `sparse` (min-max, then the threshold),
            `minmax` (no threshold) or `softmax` (of the raw similarities), the rows of the paper's table 8.
        threshold: Min-max similarities below it become 0; null for 1 / number of patches.
        similarity: `dot`, as in the paper, or `cosine`, which ignores the norms of the patches.
        detach_weights: Stop the gradient at the weights. The paper lets it through.
        negatives: A token's negatives: the other tokens of its caption (`sequence`), or all tokens of the
            batch (`batch`, as in DreamLIP, arXiv 2403.17007).
        reduction: Mean over all tokens of the batch (`token`, listing 1) or over captions of their
            tokens' mean (`sample`, equation 6; a caption without tokens counts as 0).
        temperature: Initial tau; 1/tau is learned and kept in [1, 100].
        separate_temperature: Learn a second temperature for the local loss. The paper shares one.
    """

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
            raise InputError(f"SPARC's threshold must lie in [0, 1] (or be null for 1/P), not {threshold}")
        self.global_weight = global_weight
        self.local_weight = local_weight
        self.weights = weights
        self.threshold = threshold
        self.similarity = similarity
        self.detach_weights = detach_weights
        self.negatives = negatives
        self.reduction = reduction
        self.scale = Scale(temperature)
        self.local_scale = Scale(temperature) if separate_temperature else self.scale

    def forward(self, images: Images, texts: Texts) -> dict[str, Float[Tensor, ""]]:
        """The terms `global` and `local`."""
        return {
            "global": self.global_weight * info_nce(cosine, images.pooled, texts.pooled, self.scale()),
            "local": self.local_weight * self.local_loss(images, texts),
        }

    def score(self, images: Images, texts: Texts) -> Float[Tensor, "I T"]:
        """Cosine of the global embeddings."""
        return cosine(images.pooled, texts.pooled)

    def align(self, images: Images, texts: Texts) -> Float[Tensor, "B L P"]:
        """The weights a of equation (4): each row of a selected token sums to 1 over patches."""
        if self.similarity == "cosine":
            s = cosine(texts.tokens, images.patches)
        else:
            s = texts.tokens @ images.patches.mT
        if self.weights == "softmax":
            a = softmax(s, -1)
        else:
            a = min_max(s)
            if self.weights == "sparse":
                sigma = 1 / s.shape[-1] if self.threshold is None else self.threshold
                a = torch.where(a < sigma, 0.0, a)
            a = a / a.sum(-1, keepdim=True)  # at least 1: the best patch of a row has weight 1 before this
        return a.masked_fill(~texts.mask[..., None], 0)

    def local_loss(self, images: Images, texts: Texts) -> Float[Tensor, ""]:
        """L_f of equation (6), unweighted."""
        a = self.align(images, texts)
        c = normalize((a.detach() if self.detach_weights else a) @ images.patches)
        t = normalize(texts.tokens)
        contrast = _within_caption if self.negatives == "sequence" else _across_batch
        k = self.local_scale()
        per_token = (contrast(c, t, texts.mask, k) + contrast(t, c, texts.mask, k)) / 2
        per_token = per_token.masked_fill(~texts.mask, 0)
        lengths = texts.mask.sum(-1)
        if self.reduction == "sample":
            return (per_token.sum(-1) / lengths.clamp_min(1)).mean()
        # The mean number of tokens per rank, not this rank's own: DDP averages the ranks' losses.
        return per_token.sum() / distributed.mean(lengths.sum().to(per_token.dtype)).clamp_min(1)


def _within_caption(
    x: Float[Tensor, "B L D"], y: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"], k: Float[Tensor, ""]
) -> Float[Tensor, "B L"]:
    """Cross-entropy of x_j picking y_j among the y of its own caption; arbitrary where `mask` is False."""
    logits = masked_fill_min(k * x @ y.mT, mask[:, None, :])
    own = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
    return cross_entropy(logits.mT, own, reduction="none")


def _across_batch(
    x: Float[Tensor, "B L D"], y: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"], k: Float[Tensor, ""]
) -> Float[Tensor, "B L"]:
    """Likewise, among the y of every caption of every rank."""

    def over(x: Images, y: Texts) -> Float[Tensor, "x L"]:
        logits = k * x.patches @ y.tokens.flatten(0, 1).T
        return masked_fill_min(logits, y.mask.flatten()).logsumexp(-1)

    length = mask.shape[1]
    rows, everybody = Images(x[:, 0], x, (1, length)), Texts(y[:, 0], y, mask)
    return logsumexp(over, rows, everybody, length**2) - k * (x * y).sum(-1)
