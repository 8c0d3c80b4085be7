"""FILIP: Fine-grained Interactive Language-Image Pre-Training.

Yao et al., ICLR 2022, arXiv 2111.07783, sections 3.1 (losses) and 3.1.1 (similarities). The letters are ours: we could
not verify the numbers of the paper's equations.

    S_ij[p, l] = cos(v_ip, t_jl)                                                                   (a)
    s^I_ij = 1/P   sum_p max_l S_ij[p, l]         image i to text j; l over the real tokens        (b)
    s^T_ij = 1/L_j sum_l max_p S_ij[p, l]         text j to image i: not the transpose of s^I      (c)
    L = 1/2 [ CE_rows(k s^I) + CE_rows(k (s^T)^T) ]                                                (d)

The paper's token dropping: only the best tokens of an image or text are sent to other workers. Tokens are ranked by
their largest similarity with any token of the other modality in the batch.

Differs from the paper:
- Token dropping is off (`keep_ratio` 1), as in the released code. The paper is reported to train with 0.25 to save
  communication, SPARC's baseline with "20 % token dropping". Tokens are ranked in the batch of all ranks instead of a
  worker's own batch, so that N ranks equal one.
- The paper has no map; `align` is S, the cosine of each token with each patch.

As in the paper, texts are ranked by s^I and images by s^T: `score` is s^I, and `text_to_image_score` is s^T.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from patchword import distributed
from patchword.contrast import BUDGET, LogitScale, cross_entropies
from patchword.errors import UserError
from patchword.features import Images, Texts
from patchword.objective import Objective
from patchword.ops import cosine, late_interaction, masked_fill_min, normalize, without_padding


@final
class FILIP(Objective):
    """Contrastive loss on token-wise late interaction.

    Args:
        keep_ratio: Share of the patches and of the tokens that token dropping keeps (at least one); 1 drops none.
        drop: Dropped tokens are excluded from the maxima (`keys`), or from the maxima and the means (`both`).
        padding: `exclude` padding, or count it as tokens of similarity 0 (`zero`), as the released code does. With
            `zero`, an image's similarity with a padded text is never negative and depends on the length of the padding.
        temperature: Initial tau; 1/tau is learned and kept in [1, 100].
        separate_temperatures: Learn one tau for each direction, as the released code does.
        label_smoothing: Share of the target spread over all candidates; the released code uses 0.1.
    """

    uses_local_features = True
    multi_positive = True

    def __init__(
        self,
        keep_ratio: float = 1.0,
        drop: Literal["keys", "both"] = "keys",
        padding: Literal["exclude", "zero"] = "exclude",
        temperature: float = 0.07,
        separate_temperatures: bool = False,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 < keep_ratio <= 1:
            raise UserError(f"FILIP's keep_ratio must lie in (0, 1], not {keep_ratio}")
        if not 0 <= label_smoothing < 1:
            raise UserError(f"FILIP's label_smoothing must lie in [0, 1), not {label_smoothing}")
        self.keep_ratio = keep_ratio
        self.drop = drop
        self.padding = padding
        self.label_smoothing = label_smoothing
        self.scale = LogitScale(temperature)
        self.text_scale = LogitScale(temperature) if separate_temperatures else self.scale

    def forward(self, images: Images, texts: Texts) -> dict[str, Float[Tensor, ""]]:
        """The loss term `local`."""
        if self.keep_ratio == 1:
            to_texts, to_images = self.losses(images, texts)
        elif self.drop == "both":
            to_texts, to_images = self.losses(*self.best(images, texts))
        else:
            best_images, best_texts = self.best(images, texts)
            to_texts, _ = self.losses(images, best_texts)
            _, to_images = self.losses(best_images, texts)
        return {"local": (to_texts + to_images) / 2}  # (d)

    def score(self, images: Images, texts: Texts) -> Float[Tensor, "I T"]:
        """s^I of all patches and tokens, by which an image ranks texts."""
        return self.similarities(images, texts)[0]

    def text_to_image_score(self, images: Images, texts: Texts) -> Float[Tensor, "I T"]:
        """s^T of all patches and tokens, by which a text ranks images."""
        return self.similarities(images, texts)[1]

    def scores(self, images: Images, texts: Texts) -> tuple[Float[Tensor, "I T"], Float[Tensor, "I T"]]:
        """s^I and s^T, from the same cosines."""
        return self.similarities(images, texts)

    def align(self, images: Images, texts: Texts) -> Float[Tensor, "B L P"]:
        """S of (a): the cosine of each token with each patch."""
        return cosine(texts.tokens, images.patches).masked_fill(~texts.mask[..., None], 0)

    def similarities(self, images: Images, texts: Texts) -> tuple[Float[Tensor, "I T"], Float[Tensor, "I T"]]:
        """s^I and s^T."""
        if self.padding == "exclude":
            return late_interaction(images.patches, texts.tokens, texts.mask, "cosine", images.mask)  # (a), (b), (c)
        tokens, every = texts.tokens.masked_fill(~texts.mask[..., None], 0), torch.ones_like(texts.mask)
        to_texts, to_images = late_interaction(images.patches, tokens, every, "cosine", images.mask)
        return to_texts, to_images * texts.mask.shape[1] / texts.mask.sum(-1).clamp_min(1)

    def losses(self, images: Images, texts: Texts) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The cross-entropies of both directions."""

        def logits(images: Images, texts: Texts) -> tuple[Float[Tensor, "I T"], Float[Tensor, "I T"]]:
            to_texts, to_images = self.similarities(images, texts)
            return self.scale() * to_texts, self.text_scale() * to_images

        # Late interaction has its own tiles and keeps a few bytes per pair, so a tile can hold many pairs.
        return cross_entropies(logits, images, texts, pair_size=1, label_smoothing=self.label_smoothing)

    def best(self, images: Images, texts: Texts) -> tuple[Images, Texts]:
        """Images and texts after token dropping: fewer patches for each image, fewer tokens in each mask."""
        of_patch, of_token = _best_similarities(images, texts)
        kept = of_patch.topk(max(int(self.keep_ratio * of_patch.shape[1]), 1)).indices  # best first, padding last
        patches, place = (
            images.patches.take_along_dim(kept[..., None], 1),
            torch.arange(kept.shape[1], device=kept.device),
        )
        real = None if images.mask is None else place < self._number(images.mask)
        place = masked_fill_min(of_token, texts.mask).argsort(descending=True, stable=True).argsort()
        mask = texts.mask & (place < self._number(texts.mask))
        return Images(images.pooled, patches, (1, kept.shape[1]), real), replace(texts, mask=mask)

    def _number(self, mask: Bool[Tensor, "N K"]) -> Float[Tensor, "N 1"]:
        """The number of patches or tokens in each mask that token dropping keeps."""
        return (self.keep_ratio * mask.sum(-1, keepdim=True).double()).floor().clamp_min(1)


@torch.no_grad()
def _best_similarities(images: Images, texts: Texts) -> tuple[Float[Tensor, "I P"], Float[Tensor, "T L"]]:
    """Each patch's largest cosine with any token, and each token's with any patch, of the batch of all ranks."""
    images = replace(images, patches=normalize(images.patches))
    texts = replace(texts, tokens=normalize(texts.tokens))
    of_patch, of_token = [], []
    for some in distributed.visit(texts):
        rows, columns = [], []
        step = max(BUDGET // (images.patches.shape[1] * some.mask.numel()), 1)
        for part in (images[i : i + step] for i in range(0, len(images), step)):
            similarity = without_padding(part.patches @ some.tokens.flatten(0, 1).T, part.mask, 1)
            rows.append(masked_fill_min(similarity, some.mask.flatten()).amax(-1))
            columns.append(similarity.amax((0, 1)))
        of_patch.append(torch.cat(rows))
        of_token.append(torch.stack(columns).amax(0).view(some.mask.shape))
    best = distributed.maximum(distributed.in_rank_order(torch.cat(of_token)))
    return torch.stack(of_patch).amax(0), distributed.own(best)[:, : texts.mask.shape[1]]
