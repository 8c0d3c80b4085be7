"""DreamLIP: Language-Image Pre-training with Long Captions.

Zheng et al., ECCV 2024, arXiv 2403.17007; the losses as in the authors' code. The letters are ours: we could not verify
the numbers of the paper's equations. Each image has K captions, such as the sentences of a long one.

    v_ip, t_ik, x_i              patches of image i, global vectors of its captions and of itself, normalized
    s_ikp = t_ik . v_ip                                                                                        (a)
    shat_ikp = (s_ikp - min_p s_ikp) / (max_p s_ikp - min_p s_ikp),  0 if below the threshold                  (b)
    a_ikp = shat_ikp / sum_p shat_ikp                                                                          (c)
    c_ik = sum_p a_ikp v_ip      the caption's group of patches, then normalized                               (d)
    L_s = 1/2 [ CE(k' c t^T) + CE(k' t c^T) ]    over all B K groups and captions                              (e)
    L_g = 1/K sum_k 1/2 [ CE(k x t_k^T) + CE(k t_k x^T) ]    over the B k-th captions                          (f)
    L = global_weight * L_g + local_weight * L_s                                                               (g)

(a) to (e) are SPARC with captions in place of tokens, with cosines, and with the groups of the whole batch as
negatives. A group has to match its own caption better than the other captions of its image.

Differs from the paper:
- The code stacks captions as [K, B, D] and then reads this memory as [B, K, D]. With K > 1, most groups therefore hold
  the patches of one image and the caption of another. Here each group belongs to its own image.
- The code has a second loss with all captions as positives, a circle loss or a proxy-anchor loss, which is off by
  default and which we leave out. We could not verify the paper's multi-positive loss.
- The threshold 0.1 is that of the code's class; its command line sets 0, which discards nothing.
- k' of (e) is learned and starts at 1/0.07. The released model passes no k' (the line that would learn it is commented
  out), so that its local loss does not run.
- Equal similarities make (b) 0/0. Here such a caption gives all patches the same weight.
- `align` uses tokens in place of captions. The paper has no such map.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from patchword.contrast import info_nce
from patchword.features import Images, Texts
from patchword.objective import Objective
from patchword.objectives.sparc import SPARC
from patchword.ops import cosine, normalize


@final
class DreamLIP(Objective):
    """A contrastive loss on images and each of their captions, and one of each caption with its group of patches.

    Args:
        global_weight: Weight of the loss on the global embeddings.
        local_weight: Weight of the loss on captions and their groups of patches.
        threshold: Min-max similarities below it become 0; null for 1 / number of patches.
        candidates: What the k-th caption of an image competes with in the global loss: the k-th captions of other
            images (`same`), or all captions of other images (`all`).
        temperature: Initial tau; 1/tau is learned and kept in [1, 100].
        separate_temperature: Learn a second temperature for the local loss.
    """

    map_measure = "weight"
    map_is_pruned = True
    multi_positive = True

    def __init__(
        self,
        global_weight: float = 1.0,
        local_weight: float = 1.0,
        threshold: float | None = 0.1,
        candidates: Literal["same", "all"] = "same",
        temperature: float = 0.07,
        separate_temperature: bool = True,
    ) -> None:
        super().__init__()
        self.global_weight = global_weight
        self.local_weight = local_weight
        self.candidates = candidates
        self.grouping = SPARC(
            threshold=threshold,
            negatives="batch",
            temperature=temperature,
            separate_temperature=separate_temperature,
        )

    def forward(self, images: Images, texts: Texts) -> dict[str, Float[Tensor, ""]]:
        """The loss terms `global` and `local`."""
        return {  # (g)
            "global": self.global_weight * self._global_loss(images, texts),
            "local": self.local_weight * self.grouping.local_loss(*_captions_as_tokens(images, texts)),  # (a) to (e)
        }

    def score(self, images: Images, texts: Texts) -> Float[Tensor, "I T"]:
        """Cosine of the global embeddings."""
        return cosine(images.pooled, texts.pooled)

    def align(self, images: Images, texts: Texts) -> Float[Tensor, "B L P"]:
        """The weights a of equation (c) with each token in place of a caption. Rows sum to 1 over patches."""
        return self.grouping.align(_with_unit_patches(images), texts)

    def _global_loss(self, images: Images, texts: Texts) -> Float[Tensor, ""]:
        """L_g of equation (f)."""
        k, x, t = self.grouping.scale(), images.pooled, texts.pooled
        if self.candidates == "all":
            return info_nce(cosine, x, t, k)
        per_caption = [info_nce(cosine, x, each, k) for each in t.unflatten(0, (len(x), -1)).unbind(1)]
        return torch.stack(per_caption).mean()


def _captions_as_tokens(images: Images, texts: Texts) -> tuple[Images, Texts]:
    """Normalized patches, and one text per image whose tokens are the global vectors of the image's K captions."""
    t = normalize(texts.pooled).unflatten(0, (len(images), -1))
    return _with_unit_patches(images), Texts(t[:, 0], t, t.new_ones(t.shape[:2], dtype=torch.bool))


def _with_unit_patches(images: Images) -> Images:
    return replace(images, patches=normalize(images.patches))
