"""Contrastive losses over all pairs of a batch, in tiles.

A tile is the scores of some of this rank's images with some of everybody's texts. What does not fit in memory at once
is scored tile by tile and scored again in the backward pass. Only texts travel between ranks: a rank scores its own
images with all texts, and shares, for each text, the log-sum-exp over its images. In a ring (`distributed.exchange`) a
tile's texts are fetched from their rank when the tile is scored, and again when it is scored again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.utils.checkpoint import checkpoint

from patchword import distributed
from patchword.distributed import Side
from patchword.errors import InputError
from patchword.features import Images, Texts

I = TypeVar("I", Tensor, Images)  # noqa: E741
T = TypeVar("T", Tensor, Texts)
BUDGET = 2**22  # numbers that the scores of a tile may build: what fits the caches of a CPU, 16 times that elsewhere


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
        # One dimension, since sharding splits along the first.
        self.log = nn.Parameter(torch.tensor([-math.log(temperature)]), requires_grad=learned)

    def forward(self) -> Float[Tensor, ""]:
        """k."""
        return self.log.exp().squeeze()

    @torch.no_grad()
    def clamp_(self) -> None:
        """Bring k back into [1, 100]; `AlignmentModule` calls it after every optimiser step."""
        self.log.clamp_(0, math.log(self.maximum))


def info_nce(
    score: Callable[[I, T], Float[Tensor, "I T"]],
    images: I,
    texts: T,
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

    def logits(images: I, texts: T) -> tuple[Float[Tensor, "I T"], Float[Tensor, "I T"]]:
        z = scale * score(images, texts)
        return z, z

    to_texts, to_images = cross_entropies(logits, images, texts, pair_size)
    return (to_texts + to_images) / 2


def cross_entropies(
    logits: Callable[[I, T], tuple[Float[Tensor, "I T"], Float[Tensor, "I T"]]],
    images: I,
    texts: T,
    pair_size: int = 1,
    label_smoothing: float = 0.0,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The mean cross-entropy of images over texts, and of texts over images.

    Args:
        logits: Of any images and any texts: [I, T] for the first, [I, T] for the second; one tensor or two.
        images: As of `info_nce`.
        texts: As of `info_nce`.
        pair_size: As of `info_nce`.
        label_smoothing: Share of the target that is spread evenly over all candidates.
    """
    smooth, candidates = label_smoothing, len(texts) * distributed.world_size()

    def target(z: Float[Tensor, "i t"], own: int) -> Float[Tensor, ""]:
        mean = z.diagonal(own).sum() / len(images)
        return (1 - smooth) * mean + smooth * z.sum() / (len(images) * candidates) if smooth else mean

    def sums(images: I, texts: T, own: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        to_texts, to_images = logits(images, texts)
        return to_texts.logsumexp(1), to_images.logsumexp(0), target(to_texts, own), target(to_images, own)

    over_texts, over_images, targets = [], [], []
    for row in _tiles_of_all(sums, images, texts, pair_size):
        rows, columns, *own = zip(*row, strict=True)
        over_texts.append(torch.stack(rows).logsumexp(0))
        over_images.append(torch.cat(columns))
        targets.append(torch.stack([torch.stack(z).sum() for z in own]))
    text_target, image_target = torch.stack(targets).sum(0)
    to_images = distributed.logsumexp(distributed.in_rank_order(torch.stack(over_images).logsumexp(0)))
    return torch.cat(over_texts).mean() - text_target, to_images.mean() - image_target


def sigmoid_loss(
    score: Callable[[I, T], Float[Tensor, "I T"]],
    images: I,
    texts: T,
    scale: Float[Tensor, ""] | float,
    bias: Float[Tensor, ""] | float,
    pair_size: int = 1,
) -> Float[Tensor, ""]:
    """-1/B sum_ij log sigmoid(z_ij Z_ij), Z = scale * score + bias, z = 1 for own pairs and -1 for all others.

    SigLIP, arXiv 2303.15343, algorithm 1: the sum over texts, the mean over images. With K texts for each image, image
    by image, all K are its own (FLAIR, arXiv 2412.03561, multi-positive). The other arguments are as of `info_nce`.
    """
    own_texts = len(texts) // len(images)

    def total(images: I, texts: T, own: int) -> Tensor:
        logits = scale * score(images, texts) + bias
        # As if all were negative, then the own pairs set right: softplus(-z) = softplus(z) - z.
        return softplus(logits).sum() - _own_pairs(logits, own, own_texts).sum()

    tiles = [tile for row in _tiles_of_all(total, images, texts, pair_size) for tile in row]
    return torch.stack(tiles).sum() / len(images)


def logsumexp(logits: Callable[[I, T], Tensor], images: I, texts: T, pair_size: int) -> Tensor:
    """`logits` [I, ...], a log-sum-exp over any texts, over the texts of all ranks. Arguments as of `info_nce`."""
    rows = _tiles_of_all(lambda images, texts, _: logits(images, texts), images, texts, pair_size)
    return torch.cat([torch.stack(row).logsumexp(0) for row in rows])


def tiled(score: Callable[[I, T], Float[Tensor, "I T"]], images: I, texts: T, pair_size: int) -> Float[Tensor, "I T"]:
    """`score` of all images with all texts, tile by tile. Arguments as of `info_nce`."""
    rows = _tiles(lambda images, texts, _: score(images, texts), images, texts, pair_size)
    return torch.cat([torch.cat(row, 1) for row in rows])


def _own_pairs(logits: Float[Tensor, "i t"], own: int, each: int) -> Float[Tensor, " n"]:
    """The entries of a tile's own pairs: `each` texts belong to an image, those of the first one begin at `own`."""
    if each == 1:
        return logits.diagonal(own)
    row = torch.arange(len(logits), device=logits.device)[:, None].expand(-1, each)
    column = own + each * row + torch.arange(each, device=logits.device)
    here = (column >= 0) & (column < logits.shape[1])
    return logits[row[here], column[here]]


def _tiles_of_all(tile: Callable[[I, T, int], Any], images: I, texts: T, pair_size: int) -> Iterator[list[Any]]:
    """`_tiles` of this rank's images with the texts of all ranks, in the order of `distributed.visit`."""
    each = len(texts) // len(images)
    if each * len(images) != len(texts):
        raise ValueError(f"{len(texts)} texts are not the same number for each of {len(images)} images")
    if distributed.in_ring():
        return _tiles(tile, images, distributed.as_long(texts), pair_size, each, ranks=distributed.world_size())
    own = distributed.rank() * len(texts)
    return _tiles(tile, images, distributed.gather(texts), pair_size, each, own)


def _tiles(
    tile: Callable[[I, T, int], Any], images: I, texts: T, pair_size: int, each: int = 1, own: int = 0, ranks: int = 1
) -> Iterator[list[Any]]:
    """`tile(images, texts, own)` of every tile, a list for each row of tiles.

    Args:
        tile: Its `own` is where the tile's own pairs lie: `scores.diagonal(own)`, which is empty where it has none, or
            `_own_pairs` of several texts for each image.
        images: As of `info_nce`.
        texts: The columns; with `ranks`, a share of them.
        pair_size: As of `info_nce`.
        each: Texts that belong to an image.
        own: The first text of the first image.
        ranks: From how many ranks texts are fetched, one tile's at a time; the own ones come first.
    """
    device = (images if isinstance(images, Tensor) else images.pooled).device
    pairs = max(BUDGET * (1 if device.type == "cpu" else 16) // pair_size, 1)
    # Few images beside many texts: what a score prepares for an image is prepared for few tiles.
    height = min(max(pairs // len(texts), 1), len(images))
    width = min(pairs // height, len(texts))
    if (height, width, ranks) == (len(images), len(texts), 1):
        yield [tile(images, texts, own)]
        return

    def fetched(images: I, texts: T, own: int, places: int) -> Any:
        return tile(images, distributed.rotate(texts, places), own)

    again = partial(checkpoint, fetched, use_reentrant=False, preserve_rng_state=False)
    for i, rows in enumerate(_split(images, height)):
        # Splitting anew for every rank lets the backward pass hand on a rank's gradient before it comes to the next.
        yield [
            again(rows, some, own + i * height * each - places * len(texts) - j * width, places)
            for places in range(ranks)
            for j, some in enumerate(_split(texts, width))
        ]


def _split(side: Side, size: int) -> list[Side]:
    """`side` in parts of `size`; slices would each send back a gradient as large as the whole."""
    if isinstance(side, Tensor):
        return list(side.split(size))
    parts = {n: x.split(size) for n, x in vars(side).items() if isinstance(x, Tensor)}
    count = -(-len(side) // size)
    return [replace(side, **{n: x[i] for n, x in parts.items()}) for i in range(count)]
