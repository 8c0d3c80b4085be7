"""Contrastive losses over all pairs of a batch, in tiles.

A tile is the scores of some of this rank's images with some of everybody's texts. What does not fit in memory at once
is scored tile by tile and scored again in the backward pass. Only texts travel between ranks: a rank scores its own
images with all texts, and shares, for each text, the log-sum-exp over its images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.utils.checkpoint import checkpoint

from patchword import distributed
from patchword.distributed import Side
from patchword.errors import InputError

BUDGET = 2**25  # numbers that the scores of one tile may build on the way: 128 MiB in float32


class Scale(nn.Module):
    """A learned inverse temperature k = 1/tau, held as its logarithm (CLIP, arXiv 2103.00020, section 2.5).

    Args:
        temperature: The initial tau.
        learned: False keeps it as it is.
    """

    maximum = 100.0

    def __init__(self, temperature: float = 0.07, learned: bool = True) -> None:
        super().__init__()
        if not 1 / self.maximum <= temperature <= 1:
            raise InputError(f"temperature must lie in [{1 / self.maximum}, 1], not {temperature}")
        self.log = nn.Parameter(torch.tensor(-math.log(temperature)), requires_grad=learned)

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
    pair_size: int = 1,
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE: half the mean cross-entropy of images over texts and of texts over images.

    Args:
        score: Similarities [I, T] of any images and any texts; the score of a pair must need no other pair.
        images: This rank's B images; whatever `score` takes (a tensor [B, D] or `Images`).
        texts: This rank's texts, texts[b] the partner of images[b].
        scale: The inverse temperature.
        pair_size: How many numbers `score` builds for a pair.
    """

    def sums(images: Side, texts: Side, own: int) -> tuple[Tensor, Tensor, Tensor]:
        logits = scale * score(images, texts)
        return logits.logsumexp(1), logits.logsumexp(0), logits.diagonal(own)

    rows, columns, positive = [], [], []
    for row in _tiles(sums, images, distributed.gather(texts), pair_size):
        over_texts, over_images, diagonals = zip(*row, strict=True)
        rows.append(torch.stack(over_texts).logsumexp(0))
        columns.append(torch.cat(over_images))
        positive.extend(diagonals)
    over_images = distributed.logsumexp(torch.stack(columns).logsumexp(0))
    return (torch.cat(rows) + over_images).mean() / 2 - torch.cat(positive).mean()


def sigmoid_loss(
    score: Callable[[Side, Side], Float[Tensor, "I T"]],
    images: Side,
    texts: Side,
    scale: Float[Tensor, ""] | float,
    bias: Float[Tensor, ""] | float,
    pair_size: int = 1,
) -> Float[Tensor, ""]:
    """-1/B sum_ij log sigmoid(z_ij Z_ij), Z = scale * score + bias, z = 1 for own pairs and -1 for all others.

    SigLIP, arXiv 2303.15343, algorithm 1: the sum over texts, the mean over images. Arguments as of `info_nce`.
    """

    def total(images: Side, texts: Side, own: int) -> Tensor:
        logits = scale * score(images, texts) + bias
        # As if all were negative, then the own pairs set right: softplus(-z) = softplus(z) - z.
        return softplus(logits).sum() - logits.diagonal(own).sum()

    tiles = [tile for row in _tiles(total, images, distributed.gather(texts), pair_size) for tile in row]
    return torch.stack(tiles).sum() / len(images)


def tiled(
    score: Callable[[Side, Side], Float[Tensor, "I T"]], images: Side, texts: Side, pair_size: int
) -> Float[Tensor, "I T"]:
    """`score` of all images with all texts, tile by tile. Arguments as of `info_nce`."""
    rows = _tiles(lambda images, texts, _: score(images, texts), images, texts, pair_size)
    return torch.cat([torch.cat(row, 1) for row in rows])


def _tiles(tile: Callable[[Side, Side, int], Any], images: Side, texts: Side, pair_size: int) -> Iterator[list[Any]]:
    """`tile(images, texts, own)` of every tile, a list for each row of tiles.

    `own` is where the tile's own pairs lie: `scores.diagonal(own)`, which is empty where it has none.
    """
    pairs = max(BUDGET // pair_size, 1)
    width = min(pairs, len(texts))
    height = min(pairs // width, len(images))
    if (height, width) == (len(images), len(texts)):
        yield [tile(images, texts, distributed.rank() * len(images))]
        return
    columns = list(_split(texts, width))
    for i, rows in enumerate(_split(images, height)):
        own = distributed.rank() * len(images) + i * height
        yield [checkpoint(tile, rows, c, own - j * width, use_reentrant=False) for j, c in enumerate(columns)]


def _split(side: Side, size: int) -> list[Side]:
    """`side` in parts of `size`; slices would each send back a gradient as large as the whole."""
    if isinstance(side, Tensor):
        return list(side.split(size))
    parts = {n: x.split(size) for n, x in vars(side).items() if isinstance(x, Tensor)}
    count = -(-len(side) // size)
    return [replace(side, **{n: x[i] for n, x in parts.items()}) for i in range(count)]
