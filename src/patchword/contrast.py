"""Contrastive losses over a batch: rows are this rank's, columns are everybody's."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from patchword.distributed import Side, gather, rank, world_size
from patchword.errors import InputError


class Scale(nn.Module):
    """A learned inverse temperature k = 1/tau, held as its logarithm (CLIP, arXiv 2103.00020, section 2.5).

    Args:
        temperature: The initial tau.
    """

    maximum = 100.0

    def __init__(self, temperature: float = 0.07) -> None:
        super().__init__()
        if not 1 / self.maximum <= temperature <= 1:
            raise InputError(f"temperature must lie in [{1 / self.maximum}, 1], not {temperature}")
        self.log = nn.Parameter(torch.tensor(-math.log(temperature)))

    def forward(self) -> Float[Tensor, ""]:
        """k."""
        return self.log.exp()

    @torch.no_grad()
    def clamp_(self) -> None:
        """Bring k back into [1, 100]; `AlignmentModule` calls it after every optimiser step."""
        self.log.clamp_(0, math.log(self.maximum))


def info_nce(
    score: Callable[[Side, Side], Float[Tensor, "I T"]],
    images: Side,
    texts: Side,
    scale: Float[Tensor, ""] | float,
    text_score: Callable[[Side, Side], Float[Tensor, "I T"]] | None = None,
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE: half the mean cross-entropy of images over texts and of texts over images.

    Args:
        score: Similarities [I, T] of any images and any texts. Called with this rank's images and all texts,
            and with all images and this rank's texts.
        images: This rank's images; whatever `score` takes (a tensor [B, D] or `Images`).
        texts: This rank's texts, texts[b] the partner of images[b].
        scale: The inverse temperature.
        text_score: Likewise, for the text-to-image direction, where it differs (FILIP).
    """
    all_texts, all_images = gather(texts), gather(images)
    to_texts = score(images, all_texts)
    if text_score is None and world_size() == 1:
        to_images = to_texts.mT
    else:
        to_images = (text_score or score)(all_images, texts).mT
    own = torch.arange(len(to_texts), device=to_texts.device) + rank() * len(to_texts)
    return (cross_entropy(scale * to_texts, own) + cross_entropy(scale * to_images, own)) / 2
