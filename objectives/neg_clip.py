"""NegCLIP: When and why vision-language models behave like bags-of-words, and what to do about it?

Yuksekgonul et al., ICLR 2023, arXiv 2210.01936 (section 4). The letters are ours.

    Z_ij = k cos(x_i, y_j)                              image i, caption j
    N_ijm = k cos(x_i, n_jm)                            n_jm: hard negative m of image j, such as words swapped
    L_i2t = -1/B sum_i log [ exp Z_ii / (sum_j exp Z_ij + sum_jm exp N_ijm) ]
    L_t2i = -1/B sum_j log [ exp Z_jj / sum_i exp Z_ij ]
    L = 1/2 [ L_i2t + L_t2i ]

An image must choose its caption among the captions and the hard negatives of the whole batch. Hard negatives have no
image, so they are in no other loss.

Differs from the paper:
- The paper also puts similar images into one batch. Which images a batch has is up to the data here.
- The paper has one hard negative per caption; here an image can have any number of them, or none.
- The paper has no token-patch map; `align` is the cosine of each token with each patch, as for CLIP.
"""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from patchword.contrast import LogitScale, cross_entropies
from patchword.features import Images, Texts
from patchword.objective import Need, Objective
from patchword.ops import cosine, masked_fill_min, normalize, products


@final
class NegCLIP(Objective):
    """CLIP's loss with hard-negative captions among the candidates of each image.

    Args:
        temperature: Initial tau; 1/tau is learned and kept in [1, 100].
    """

    needs: tuple[Need, ...] = ("negatives",)

    def __init__(self, temperature: float = 0.07) -> None:
        super().__init__()
        self.scale = LogitScale(temperature)

    def forward(self, images: Images, texts: Texts) -> dict[str, Float[Tensor, ""]]:
        """The loss term `global`."""
        assert images.negatives is not None  # in `needs`
        x, captions = normalize(images.pooled), normalize(torch.cat([texts.pooled[:, None], images.negatives], 1))
        k = self.scale()
        own = contrast_with_own(k * (x[:, None] * captions).sum(-1), captions)
        return {"global": contrast_with_negatives(x, captions, k, own)}

    def score(self, images: Images, texts: Texts) -> Float[Tensor, "I T"]:
        """Cosine of the global embeddings."""
        return cosine(images.pooled, texts.pooled)

    def align(self, images: Images, texts: Texts) -> Float[Tensor, "B L P"]:
        """Cosine of each token with each patch."""
        return cosine(texts.tokens, images.patches).masked_fill(~texts.mask[..., None], 0)


def contrast_with_negatives(
    x: Float[Tensor, "B D"], captions: Float[Tensor, "B N D"], k: Float[Tensor, ""], own: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """L of the equations above, for unit vectors of images and of captions, each followed by its N - 1 hard negatives.

    `own` is the result of `contrast_with_own`.
    """

    def logits(x: Float[Tensor, "I D"], captions: Float[Tensor, "T N D"]) -> tuple[Tensor, Tensor]:
        z = (k * products(x, captions.flatten(0, 1))).unflatten(1, captions.shape[:2])
        return with_negatives(z, captions), z[..., 0]

    # The target of an image is its caption alone, not its caption or one of its hard negatives.
    to_captions, to_images = cross_entropies(logits, x, captions)
    return (to_captions + own + to_images) / 2


def contrast_with_own(z: Float[Tensor, "*n N"], captions: Float[Tensor, "*n N D"]) -> Float[Tensor, ""]:
    """The mean cross-entropy of images over their own caption, which comes first, and their own hard negatives."""
    return (with_negatives(z, captions) - z[..., 0]).mean()


def with_negatives(z: Float[Tensor, "*n N"], captions: Float[Tensor, "*b N D"]) -> Float[Tensor, "*n"]:
    """The log-sum-exp over a caption and the hard negatives of its image. Zero vectors stand for no hard negative."""
    present = are_given(captions)
    present[..., 0] = True
    return masked_fill_min(z, present).logsumexp(-1)


def are_given(negatives: Float[Tensor, "*n D"]) -> Bool[Tensor, "*n"]:
    """Where there is a hard negative: a vector other than zero."""
    return negatives.detach().abs().amax(-1) != 0
