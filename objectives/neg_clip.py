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
from torch.nn.functional import pad

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
        x, captions = with_negatives(self.scale() * normalize(images.pooled), normalize(texts.pooled), images.negatives)
        return {"global": contrast_with_negatives(x, captions, contrast_with_own(own_logits(x, captions)))}

    def score(self, images: Images, texts: Texts) -> Float[Tensor, "I T"]:
        """Cosine of the global embeddings."""
        return cosine(images.pooled, texts.pooled)

    def align(self, images: Images, texts: Texts) -> Float[Tensor, "B L P"]:
        """Cosine of each token with each patch."""
        return cosine(texts.tokens, images.patches).masked_fill(~texts.mask[..., None], 0)


def with_negatives(
    x: Float[Tensor, "B D"], y: Float[Tensor, "B D"], negatives: Float[Tensor, "B M D"]
) -> tuple[Float[Tensor, "B 1+D"], Float[Tensor, "B 1+M 1+D"]]:
    """Vectors whose products are the logits of images with captions, of index 0, and with hard negatives.

    One more dimension adds a very negative number to the logits of hard negatives that are not given.

    Args:
        x: k times the unit vectors of images.
        y: The unit vectors of their captions.
        negatives: Hard negatives, which are not normalized. Zero vectors stand for no hard negative.
    """
    bias = masked_fill_min(torch.zeros_like(negatives[..., :1]), are_given(negatives)[..., None])
    captions = torch.cat([pad(y, (0, 1))[:, None], torch.cat([normalize(negatives), bias], -1)], 1)
    return pad(x, (0, 1), value=1.0), captions


def contrast_with_negatives(
    x: Float[Tensor, "B D"], captions: Float[Tensor, "B N D"], own: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """L of the equations above, from `with_negatives` and `contrast_with_own`."""

    def logits(x: Float[Tensor, "I D"], captions: Float[Tensor, "T N D"]) -> tuple[Tensor, Tensor]:
        captions = captions.transpose(0, 1)  # A sum over captions and hard negatives is slow in the last dimension.
        z = products(x, captions.flatten(0, 1)).unflatten(1, captions.shape[:2])
        return z.logsumexp(1), z[:, 0]

    # The target of an image is its caption alone, not its caption or one of its hard negatives.
    to_captions, to_images = cross_entropies(logits, x, captions)
    return (to_captions + own + to_images) / 2


def own_logits(x: Float[Tensor, "B D"], captions: Float[Tensor, "B N D"]) -> Float[Tensor, "B N"]:
    """The logits of images with their own caption, of index 0, and their own hard negatives, from `with_negatives`."""
    return (x[:, None] * captions).sum(-1)


def contrast_with_own(z: Float[Tensor, "B N"]) -> Float[Tensor, ""]:
    """The mean cross-entropy of images over their own caption and their own hard negatives, from `own_logits`."""
    return (z.logsumexp(-1) - z[:, 0]).mean()


def are_given(negatives: Float[Tensor, "*n D"]) -> Bool[Tensor, "*n"]:
    """Where there is a hard negative: a vector other than zero."""
    return negatives.detach().abs().amax(-1) != 0
