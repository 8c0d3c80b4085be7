"""FG-CLIP 2: A Bilingual Fine-grained Vision-Language Alignment Model.

Xie et al., ICML 2026, arXiv 2510.10921; the losses and weights of the authors' code (360CVGroup/FG-CLIP at b1af1cd).
Numbers are the paper's, letters are ours. Regions r_m with texts u_m, and the letters x, y and n, are those of FG-CLIP.

    L_global = sum_k SigLIP(x, y_k)                                                     k: the texts of an image     (a)
    L_region = 1/2 [ CE_rows(R) + CE_rows(R^T) ],   R_mn = s_r cos(r_m, u_n)                                         (b)
    L_text = mean_m log sum_{n in T_m} exp cos(u_m, u_n)     T_m: the 10 texts nearest to u_m, of cosine <= 0.95     (1)
    L_negative = -mean_i log [ exp s_n cos(x_i, y_i) / (exp s_n cos(x_i, y_i) + sum_m exp s_n cos(x_i, n_im)) ]      (c)
    L_batch_negative = NegCLIP(x, y, n)     all captions and hard negatives are candidates of an image, with s_n     (d)
    g_im = s_n [ cos(x_i, y_i) - cos(x_i, n_im) ],   L_rank = mean_im max(0, margin - g_im)                          (2)
    margin = the mean of g_im in the last step, kept in [0, 10], without gradient; 0 in the first step               (3)
    L = the sum of these, each times its weight                                                                      (4)

A text's cosine with itself is 1, so it is not in T_m. The rank loss is that of CE-CLIP (arXiv 2306.08832).

Differs from the paper:
- The paper's (4) has no (d), and its weights are 0.1 for (b), 0.5 for (c), 0.1 for (1) and 0.4 for (2). The code's are
  0.2, 1.5, 0.1 and 0.2, and 0.3 for (d).
- The paper's (2) and (3) compare cosines (`rank_similarity: cosine`), do not bound the margin, and have a margin for
  each place in the list of hard negatives. The code compares logits and has one margin.
- (1) is the mean over regions, as in the code. The paper has a sum. In the code, texts above 0.95, and the text itself,
  have a cosine of 0 instead of being left out.
- (b) and (1) contain the regions of all ranks, and (d) all captions, while the code compares those of one rank.
- As for FG-CLIP: hard negatives belong to images and not to regions, an image can have any number of regions, of hard
  negatives and of texts, (b) has the exact mean over a box, towers are not a part of the objective, and `align` is the
  cosine of each token with each patch. With K texts of an image, (c), (d) and (2) are means over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import pad

from patchword import distributed
from patchword.contrast import LogitScale, largest, sigmoid_loss
from patchword.errors import UserError
from patchword.features import Images, Texts
from patchword.objective import Need, Objective
from patchword.objectives.fg_clip import mean_of_all, region_loss, texts_of_regions
from patchword.objectives.neg_clip import (
    are_given,
    contrast_with_negatives,
    contrast_with_own,
    own_logits,
    with_negatives,
)
from patchword.ops import cosine, masked_fill_min, normalize, products


@final
class FGCLIP2(Objective):
    """SigLIP's loss for each text of an image, and losses of regions, of their texts and of hard negatives.

    Args:
        global_weight: Weight of the SigLIP losses on the global embeddings.
        region_weight: Weight of the contrast of regions with their texts.
        text_weight: Weight of the loss that moves the texts of regions apart. No regions are needed if this weight and
            `region_weight` are 0.
        negative_weight: Weight of the contrast of each image with its own hard negatives.
        batch_negative_weight: Weight of the contrast with the captions and the hard negatives of the batch.
        rank_weight: Weight of the hinge loss on the margin to hard negatives. No hard negatives are needed if this
            weight, `negative_weight` and `batch_negative_weight` are 0.
        rank_similarity: What has the margin: the `logit`, or the `cosine`.
        neighbors: Number of texts from which the text of a region moves away.
        similarity_limit: Texts of regions with a higher cosine count as equal and do not move apart.
        temperature: Initial tau of the SigLIP losses; 1/tau is learned and kept in [1, 100].
        bias: Initial bias of the SigLIP losses, learned.
        fine_temperature: Initial tau of the contrast of regions, and of that with hard negatives; each 1/tau is learned
            and kept in [1, 100].
    """

    multi_positive = True
    largest_margin = 10.0
    margin: Float[Tensor, ""]

    def __init__(
        self,
        global_weight: float = 1.0,
        region_weight: float = 0.2,
        text_weight: float = 0.1,
        negative_weight: float = 1.5,
        batch_negative_weight: float = 0.3,
        rank_weight: float = 0.2,
        rank_similarity: Literal["logit", "cosine"] = "logit",
        neighbors: int = 10,
        similarity_limit: float = 0.95,
        temperature: float = 0.1,
        bias: float = -10.0,
        fine_temperature: float = 0.01,
    ) -> None:
        super().__init__()
        if neighbors < 1:
            raise UserError(f"FGCLIP2's neighbors must be 1 or more, not {neighbors}")
        if not -1 <= similarity_limit < 1:
            raise UserError(f"FGCLIP2's similarity_limit must be at least -1 and less than 1, not {similarity_limit}")
        self.global_weight = global_weight
        self.region_weight = region_weight
        self.text_weight = text_weight
        self.negative_weight = negative_weight
        self.batch_negative_weight = batch_negative_weight
        self.rank_weight = rank_weight
        self.rank_similarity = rank_similarity
        self.neighbors = neighbors
        self.similarity_limit = similarity_limit
        needed: dict[Need, float] = {
            "regions": region_weight + text_weight,
            "negatives": negative_weight + batch_negative_weight + rank_weight,
        }
        self.needs = tuple(need for need, weight in needed.items() if weight)
        self.scale = LogitScale(temperature)
        self.bias = nn.Parameter(torch.tensor([float(bias)]))  # one dimension, because sharding splits the first one
        self.region_scale = LogitScale(fine_temperature, learned=region_weight > 0)
        self.negative_scale = LogitScale(fine_temperature, learned=needed["negatives"] > 0)
        self.register_buffer("margin", torch.zeros(()))

    def forward(self, images: Images, texts: Texts) -> dict[str, Float[Tensor, ""]]:
        """The loss terms, without those whose weight is 0. In training mode, the margin of the next step is stored.

        They are `global`, `region`, `text`, `negative`, `batch_negative` and `rank`.
        """
        x, y = normalize(images.pooled), normalize(texts.pooled).unflatten(0, (len(images), -1)).unbind(1)
        k, b = self.scale(), self.bias.squeeze()
        losses = [sigmoid_loss(products, x, y_k, k, b) for y_k in y]
        terms = {"global": self.global_weight * torch.stack(losses).sum()}  # (a)
        if "regions" in self.needs:
            u, present = texts_of_regions(images)
            if self.region_weight:
                terms["region"] = self.region_weight * region_loss(images, u, present, self.region_scale())  # (b)
            if self.text_weight:
                terms["text"] = self.text_weight * self.text_loss(u, present)
        return terms | self.negative_terms(x, y, images.negatives) if "negatives" in self.needs else terms  # (4)

    def score(self, images: Images, texts: Texts) -> Float[Tensor, "I T"]:
        """Cosine of the global embeddings."""
        return cosine(images.pooled, texts.pooled)

    def align(self, images: Images, texts: Texts) -> Float[Tensor, "B L P"]:
        """Cosine of each token with each patch."""
        return cosine(texts.tokens, images.patches).masked_fill(~texts.mask[..., None], 0)

    def text_loss(self, u: Float[Tensor, "N D"], present: Bool[Tensor, " N"]) -> Float[Tensor, ""]:
        """L_text of equation (1), unweighted: the mean over the texts whose set T_m is not empty, or 0."""

        def candidates(u: Float[Tensor, "n E"], others: Float[Tensor, "m E"]) -> Float[Tensor, "n m"]:
            z = products(u, others)
            return masked_fill_min(z, z <= self.similarity_limit)

        # One more dimension adds a very negative number to the cosines of padding.
        padding = masked_fill_min(torch.zeros_like(u[:, :1]), present[:, None])
        z = largest(candidates, pad(u, (0, 1), value=1.0), torch.cat([u, padding], 1), self.neighbors)
        counts = present & (z[:, 0] > torch.finfo(z.dtype).min)
        return mean_of_all(z.logsumexp(1), counts)  # (1)

    def negative_terms(
        self, x: Float[Tensor, "B D"], y: Sequence[Float[Tensor, "B D"]], negatives: Float[Tensor, "B M D"] | None
    ) -> dict[str, Float[Tensor, ""]]:
        """The terms `negative`, `batch_negative` and `rank`, from unit vectors of images and of their K texts."""
        assert negatives is not None  # in `needs`
        s = self.negative_scale()
        sides = [with_negatives(s * x, y_k, negatives) for y_k in y]
        own = [own_logits(*side) for side in sides]
        contrasts, terms = [contrast_with_own(z) for z in own], {}
        if self.negative_weight:
            terms["negative"] = self.negative_weight * torch.stack(contrasts).mean()  # (c)
        if self.batch_negative_weight:
            losses = [contrast_with_negatives(*side, one) for side, one in zip(sides, contrasts, strict=True)]  # (d)
            terms["batch_negative"] = self.batch_negative_weight * torch.stack(losses).mean()
        if self.rank_weight:
            z = torch.cat(own) if self.rank_similarity == "logit" else torch.cat(own) / s
            loss = self.rank_loss(z[:, :1] - z[:, 1:], are_given(negatives).repeat(len(y), 1))
            terms["rank"] = self.rank_weight * loss
        return terms

    def rank_loss(self, gap: Float[Tensor, "T M"], present: Bool[Tensor, "T M"]) -> Float[Tensor, ""]:
        """L_rank of equation (2), unweighted; 0 if no image has hard negatives. In training mode, it stores (3)."""
        count = distributed.mean_count(present, gap.dtype)
        loss = (self.margin - gap).relu().sum() / count  # (2); without a hard negative, the gap is huge
        if self.training:
            with torch.no_grad():
                mine = torch.stack([gap.masked_fill(~present, 0).sum(), present.any().to(gap.dtype)])
                total, some = distributed.mean(mine)
                mean = (total / count).clamp(0, self.largest_margin)
                self.margin.copy_(torch.where(some > 0, mean, self.margin))  # (3)
        return loss
