"""FG-CLIP: Fine-Grained Visual and Textual Alignment.

Xie et al., ICML 2025, arXiv 2505.05071; the weights and the number of temperatures as in the authors' code
(360CVGroup/FG-CLIP, branch v1.0). The letters are ours.

    L_g = sum_k 1/2 [ CE_rows(Z_k) + CE_rows(Z_k^T) ],   Z_k = s cos(x_i, y_jk)         k: the texts of an image     (a)
    r_m = sum_p w_mp v_ip                               region m of image i, w_mp: share of patch p in its area     (b)
    L_r = 1/2 [ CE_rows(R) + CE_rows(R^T) ],   R_mn = s_r cos(r_m, u_n)                 u_n: the text of region n    (c)
    L_n = -1/B sum_i log [ exp s_n cos(x_i, y_i) / (exp s_n cos(x_i, y_i) + sum_m exp s_n cos(x_i, n_im)) ]          (d)
    L = global_weight * L_g + region_weight * L_r + negative_weight * L_n                                            (e)

Rows and columns of R are the regions of all images of the batch. n_im are the hard negatives of image i alone.

Differs from the paper:
- In the paper, hard negatives belong to regions: (d) compares a region with its text and ten changes of this text. Here
  hard negatives belong to an image and change its caption, so (d) compares the image's global vector with them.
- (c) contains the regions of all ranks, while the code contrasts the regions of one rank.
- (b) is the exact mean over the box. The code samples a few points of the box (RoIAlign).
- The code makes the patches of (b) from the last block without its attention, and projects long texts by a layer of
  their own. Towers are not a part of the objective here.
- The paper's two texts of an image are a long and a short one. Any number of texts is possible here, and each place
  in their order is contrasted on its own.
- The paper has no token-patch map; `align` is the cosine of each token with each patch.
"""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from patchword import distributed
from patchword.contrast import LogitScale, info_nce, log_sum_exps
from patchword.features import Images, Texts
from patchword.objective import Need, Objective
from patchword.objectives.neg_clip import contrast_with_own, own_logits, with_negatives
from patchword.ops import cosine, masked_fill_min, normalize, products


@final
class FGCLIP(Objective):
    """CLIP's loss for each text of an image, a contrast of regions with their texts, and one with hard negatives.

    Args:
        global_weight: Weight of the CLIP losses on the global embeddings.
        region_weight: Weight of the contrast of regions with their texts; 0 leaves it out: no regions are needed.
        negative_weight: Weight of the contrast with hard negatives; 0 leaves it out: none are needed.
        temperature: Initial tau of each of the three losses; each 1/tau is learned and kept in [1, 100].
    """

    multi_positive = True

    def __init__(
        self,
        global_weight: float = 1.0,
        region_weight: float = 0.1,
        negative_weight: float = 0.5,
        temperature: float = 0.07,
    ) -> None:
        super().__init__()
        self.global_weight = global_weight
        self.region_weight = region_weight
        self.negative_weight = negative_weight
        needed: dict[Need, float] = {"regions": region_weight, "negatives": negative_weight}
        self.needs = tuple(need for need, weight in needed.items() if weight)
        self.scale = LogitScale(temperature)
        self.region_scale = LogitScale(temperature, learned=region_weight > 0)
        self.negative_scale = LogitScale(temperature, learned=negative_weight > 0)

    def forward(self, images: Images, texts: Texts) -> dict[str, Float[Tensor, ""]]:
        """The loss terms `global`, `region` and `negative`, without those whose weight is 0."""
        each = len(texts) // len(images)
        together = [info_nce(cosine, images.pooled, texts.pooled[k::each], self.scale()) for k in range(each)]
        terms = {"global": self.global_weight * torch.stack(together).sum()}  # (a)
        if self.region_weight:
            terms["region"] = self.region_weight * region_loss(images, *texts_of_regions(images), self.region_scale())
        if self.negative_weight:
            terms["negative"] = self.negative_weight * negative_loss(images, texts, self.negative_scale())
        return terms  # (e)

    def score(self, images: Images, texts: Texts) -> Float[Tensor, "I T"]:
        """Cosine of the global embeddings."""
        return cosine(images.pooled, texts.pooled)

    def align(self, images: Images, texts: Texts) -> Float[Tensor, "B L P"]:
        """Cosine of each token with each patch."""
        return cosine(texts.tokens, images.patches).masked_fill(~texts.mask[..., None], 0)


def texts_of_regions(images: Images) -> tuple[Float[Tensor, "N D"], Bool[Tensor, " N"]]:
    """The unit vectors of the texts of all regions, and where there is a region. The others are padding."""
    assert images.regions is not None  # in `needs`
    assert images.region_texts is not None
    return normalize(images.region_texts).flatten(0, 1), images.regions.sum(-1).flatten() > 0


def region_loss(
    images: Images, u: Float[Tensor, "N D"], present: Bool[Tensor, " N"], s: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """L_r of equation (c) with s_r = s, from the images and their `texts_of_regions`; 0 if no image has regions."""
    assert images.regions is not None
    r = s * normalize(images.regions @ images.patches).flatten(0, 1)  # (b)
    # Two more dimensions add a very negative number to the logits of padding.
    one = torch.ones_like(r[:, :1])
    padding = masked_fill_min(torch.zeros_like(one), present[:, None]) / 4
    x, y = torch.cat([r, padding, one], 1), torch.cat([u, one, padding], 1)
    over_texts, over_regions = (z.squeeze(1) for z in log_sum_exps(products, x, y, 1.0))
    return mean_of_all((over_texts + over_regions) / 2 - (r * u).sum(-1), present)


def negative_loss(images: Images, texts: Texts, s: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """L_n of equation (d) with s_n = s. With K texts of an image it is the mean over them."""
    images = images.per_text(texts)
    assert images.negatives is not None  # in `needs`
    x, captions = with_negatives(s * normalize(images.pooled), normalize(texts.pooled), images.negatives)
    return contrast_with_own(own_logits(x, captions))


def mean_of_all(x: Float[Tensor, "*n"], mask: Bool[Tensor, "*n"]) -> Float[Tensor, ""]:
    """This rank's share of the mean of x over the places of all ranks where `mask` is True; 0 if it is True nowhere."""
    return x.masked_fill(~mask, 0).sum() / distributed.mean_count(mask, x.dtype)
