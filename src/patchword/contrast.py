"""Contrastive losses over all pairs of a batch, in tiles.

An image has one text or K texts. The relation is the order of the texts: texts[t] belongs to images[t // K], and K is
the number of texts divided by the number of images. All K are positives of their image, and they are never negatives of
each other.

A tile contains the scores of some of this rank's images with some of the texts of all ranks. A batch that does not fit
in memory is scored tile by tile, and each tile is scored again in the backward pass, except for the last one, with
which the backward pass starts. Only texts are sent between ranks: a rank scores its own images with all texts, and
shares, for each text, the log-sum-exp (or the maximum) over its images. In a ring (`distributed.exchange`) a tile's
texts are fetched from their rank each time the tile is scored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus
from torch.utils.checkpoint import checkpoint

from patchword import distributed
from patchword.distributed import Side
from patchword.errors import UserError
from patchword.features import Images, Texts

I = TypeVar("I", Tensor, Images)  # noqa: E741
T = TypeVar("T", Tensor, Texts)
BUDGET = 2**22  # how many numbers a tile may compute: what fits the caches of a CPU; 16 times that on other devices


class LogitScale(nn.Module):
    """A learned inverse temperature k = 1/tau, stored as its logarithm (CLIP, arXiv 2103.00020, section 2.5).

    Args:
        temperature: The initial tau.
        learned: Whether k is learned; False keeps it fixed.
    """

    maximum = 100.0

    def __init__(self, temperature: float = 0.07, learned: bool = True) -> None:
        super().__init__()
        if not 1 / self.maximum <= temperature <= 1:
            raise UserError(f"temperature must lie in [{1 / self.maximum}, 1], not {temperature}")
        # One dimension, because sharding splits the first one.
        self.log = nn.Parameter(torch.tensor([-math.log(temperature)]), requires_grad=learned)

    def forward(self) -> Float[Tensor, ""]:
        """The inverse temperature k."""
        return self.log.exp().squeeze()

    @torch.no_grad()
    def clamp_(self) -> None:
        """Clamp k to [1, 100]. `AlignmentModule` calls this after every optimizer step."""
        self.log.clamp_(0, math.log(self.maximum))


def info_nce(
    score: Callable[[I, T], Float[Tensor, "I T *n"]],
    images: I,
    texts: T,
    scale: Float[Tensor, ""] | float,
    pair_size: int | None = None,
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE: half the mean cross-entropy of images over texts and of texts over images.

    With K texts for each image, the cross-entropy of an image is the mean over its texts, each of which competes with
    the texts of all other images.

    Args:
        score: Function that returns the similarities [I, T] of any images and texts. The score of a pair must not
            depend on other pairs. With one text for each image, it can also return several similarities of each pair,
            [I, T, *n], such as those of several views. Each of them has a loss of its own, and the result is the mean.
        images: This rank's B images, in the type that `score` accepts (a tensor [B, D] or `Images`).
        texts: This rank's texts, one or K for each image, image by image.
        scale: The inverse temperature.
        pair_size: How many numbers `score` computes per pair. None means the number of vectors of an image times that
            of a text: P L for `Images` and `Texts`, P for patches [B, P, D] and vectors [B, D], 1 for vectors.
    """

    def logits(images: I, texts: T) -> tuple[Float[Tensor, "I T *n"], Float[Tensor, "I T *n"]]:
        z = scale * score(images, texts)
        return z, z

    to_texts, to_images = cross_entropies(logits, images, texts, pair_size)
    return (to_texts + to_images) / 2


def cross_entropies(
    logits: Callable[[I, T], tuple[Float[Tensor, "I T *n"], Float[Tensor, "I T *n"]]],
    images: I,
    texts: T,
    pair_size: int | None = None,
    label_smoothing: float = 0.0,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The mean cross-entropy of images over texts, and of texts over images.

    `logits` returns the logits [I, T] of any images over any texts, and those [I, T] of the texts over the images. Both
    can be the same tensor. With one text for each image, they can have more dimensions, as in `info_nce`. Label
    smoothing spreads this share of the target evenly over all candidates. For the other arguments see `info_nce`. One
    tile of pairs is left to torch's function, which is faster.
    """
    each, smooth, ranks = _texts_per_image(images, texts), label_smoothing, distributed.world_size()
    pairs, some_texts, all_images = len(texts), len(texts) * ranks - (each - 1), len(images) * ranks
    if each == ranks == 1 and _tile_size(images, texts, pair_size) == (pairs, pairs):
        to_texts, to_images = logits(images, texts)
        return _with_diagonal(to_texts, smooth), _with_diagonal(to_images.transpose(0, 1), smooth)

    def target(z: Float[Tensor, "i t *n"], own: int, siblings: int, candidates: int) -> Float[Tensor, ""]:
        """A tile's share of the mean target; `siblings` of an own text are not among its candidates."""
        right, terms = _own_total(z, own, each), pairs * z[0, 0].numel()
        mean = right / terms
        if not smooth:
            return mean
        return (1 - smooth) * mean + smooth * ((1 + siblings) * z.sum() - siblings * right) / (terms * candidates)

    def sums(images: I, texts: T, own: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        to_texts, to_images = logits(images, texts)
        rows, columns = _over_candidates(to_texts, own, each), to_images.logsumexp(0)
        return rows, columns, target(to_texts, own, each - 1, some_texts), target(to_images, own, 0, all_images)

    over_texts, over_images, targets = _combined(_tiles_of_all(sums, images, texts, pair_size))
    text_target, image_target = targets
    return over_texts.mean() - text_target, over_images.mean() - image_target


def log_sum_exps(
    score: Callable[[I, T], Float[Tensor, "I T"]],
    images: I,
    texts: T,
    scale: Float[Tensor, ""] | float,
    pair_size: int | None = None,
) -> tuple[Float[Tensor, "I K"], Float[Tensor, "I K"]]:
    """The log-sum-exps of `scale * score` from which a loss over all pairs can be computed, for each own text.

    The first one is over the text itself and the texts of other images; the image's other own texts are left out. The
    second one is that of the text over all images. For the arguments see `info_nce`.
    """
    each = _texts_per_image(images, texts)

    def sums(images: I, texts: T, own: int) -> tuple[Tensor, Tensor]:
        z = scale * score(images, texts)
        return _over_candidates(z, own, each), z.logsumexp(0)

    over_texts, over_images, _ = _combined(_tiles_of_all(sums, images, texts, pair_size))
    return over_texts, over_images.unflatten(0, (-1, each))


def sigmoid_loss(
    score: Callable[[I, T], Float[Tensor, "I T"]],
    images: I,
    texts: T,
    scale: Float[Tensor, ""] | float,
    bias: Float[Tensor, ""] | float,
    pair_size: int | None = None,
) -> Float[Tensor, ""]:
    """-1/B sum_ij log sigmoid(z_ij Z_ij) with Z = scale * score + bias, and z = 1 for own pairs, -1 for all others.

    This is algorithm 1 of SigLIP, arXiv 2303.15343: a sum over texts and a mean over images. With K texts for each
    image, image by image, all K are positives (FLAIR, arXiv 2412.03561, multi-positive). For the other arguments see
    `info_nce`.
    """
    each = _texts_per_image(images, texts)

    def total(images: I, texts: T, own: int) -> Tensor:
        logits = scale * score(images, texts) + bias
        # The first sum treats all pairs as negatives; the second corrects own pairs: softplus(-z) = softplus(z) - z.
        return softplus(logits).sum() - _own_total(logits, own, each)

    tiles = [tile for row in _tiles_of_all(total, images, texts, pair_size) for tile in row]
    return torch.stack(tiles).sum() / len(images)


def triplet_loss(
    score: Callable[[I, T], Float[Tensor, "I T"]],
    images: I,
    texts: T,
    margin: float,
    pair_size: int | None = None,
) -> Float[Tensor, ""]:
    """The hinge loss with the hardest negatives (VSE++, arXiv 1707.05612), for images and for texts.

        mean_t max(0, margin + max_j s_ij - s_it) + mean_t max(0, margin + max_h s_ht - s_it)

    Text t belongs to image i; j are the texts of other images, and h the other images. If several negatives are the
    hardest, they share the gradient. Without other images the loss is 0. For the arguments see `info_nce`.
    """
    each = _texts_per_image(images, texts)

    def hardest(images: I, texts: T, own: int) -> tuple[Tensor, Tensor, Tensor]:
        s = score(images, texts)
        others = s.masked_fill(_is_own(s, own, each), torch.finfo(s.dtype).min)
        column, here = _own_columns(s, own, each)
        return others.amax(1), others.amax(0), s.gather(1, column).masked_fill(~here, 0)

    of_images, of_texts, own = [], [], []
    for row in _tiles_of_all(hardest, images, texts, pair_size):
        to_texts, to_images, here = zip(*row, strict=True)
        of_images.append(torch.stack(to_texts).amax(0))
        of_texts.append(torch.cat(to_images))
        own.append(torch.stack(here).sum(0))
    wrong_texts = torch.cat(of_images)[:, None]
    wrong_images = distributed.amax(distributed.in_rank_order(torch.stack(of_texts).amax(0))).unflatten(0, (-1, each))
    right = torch.cat(own)
    return torch.stack([(margin + wrong - right).relu().mean() for wrong in (wrong_texts, wrong_images)]).sum()


def logsumexp(
    logits: Callable[[I, T], Float[Tensor, "I *n T"]], images: I, texts: T, pair_size: int | None = None
) -> Float[Tensor, "I ..."]:
    """The log-sum-exp of `logits` over the texts of all ranks.

    With K texts for each image, the second dimension of `logits` must be K: one row for each own text, whose
    log-sum-exp leaves out the image's other own texts. For the arguments see `info_nce`.
    """
    each = _texts_per_image(images, texts)

    def over(images: I, texts: T, own: int) -> Tensor:
        z: Tensor = logits(images, texts)
        if each > 1:
            number = (torch.arange(z.shape[-1], device=z.device) - own) % each
            is_sibling = _is_own(z, own, each)[:, None] & (number != torch.arange(each, device=z.device)[:, None])
            z = z.masked_fill(is_sibling[(..., *[None] * (z.ndim - 3), slice(None))], torch.finfo(z.dtype).min)
        return z.logsumexp(-1)

    return torch.cat([_log_sum_exp(row) for row in _tiles_of_all(over, images, texts, pair_size)])


def largest(
    score: Callable[[I, T], Float[Tensor, "I T"]], images: I, texts: T, number: int, pair_size: int | None = None
) -> Float[Tensor, "I N"]:
    """The `number` largest scores of each image with the texts of all ranks, or all if there are fewer, descending.

    For the other arguments see `info_nce`.
    """

    def best(z: Float[Tensor, "I t"]) -> Float[Tensor, "I n"]:
        return z.topk(min(number, z.shape[1])).values

    rows = _tiles_of_all(lambda images, texts, _: best(score(images, texts)), images, texts, pair_size)
    return torch.cat([row[0] if len(row) == 1 else best(torch.cat(row, 1)) for row in rows])


def tiled(
    score: Callable[[I, T], Float[Tensor, "I T"]], images: I, texts: T, pair_size: int | None = None
) -> Float[Tensor, "I T"]:
    """`score` of all images with all texts, computed tile by tile. For the arguments see `info_nce`."""
    rows = _tiles(lambda images, texts, _: score(images, texts), images, texts, pair_size)
    return torch.cat([torch.cat(row, 1) for row in rows])


def _texts_per_image(images: I, texts: T) -> int:
    """The number K of texts of each image."""
    each = len(texts) // len(images)
    if each * len(images) != len(texts):
        raise ValueError(
            f"{len(texts)} texts for {len(images)} images: every image must have the same number of texts, so the "
            "number of texts must be a multiple of the number of images"
        )
    return each


def _with_diagonal(z: Float[Tensor, "B B *n"], label_smoothing: float) -> Float[Tensor, ""]:
    """The mean cross-entropy of the rows of a complete matrix of logits. The targets are its diagonal."""
    own = torch.arange(len(z), device=z.device).view(-1, *[1] * (z.ndim - 2))
    return cross_entropy(z, own.expand_as(z[:, 0]), label_smoothing=label_smoothing)


def _own_total(z: Float[Tensor, "i t *n"], own: int, each: int) -> Float[Tensor, ""]:
    """The sum of a tile's own pairs. Each image has `each` texts, and those of the first one start at `own`."""
    return z.diagonal(own).sum() if each == 1 else z.masked_fill(~_is_own(z, own, each), 0).sum()


def _over_candidates(z: Float[Tensor, "i t *n"], own: int, each: int) -> Float[Tensor, "i k *n"]:
    """The log-sum-exp of a tile's rows over the candidates of each own text: itself and the texts of other images."""
    if each == 1:
        return z.logsumexp(1, keepdim=True)
    least, is_own = torch.finfo(z.dtype).min, _is_own(z, own, each)
    others = z.masked_fill(is_own, least).logsumexp(1, keepdim=True)
    column, here = _own_columns(z, own, each)
    return torch.logaddexp(others, z.gather(1, column).masked_fill(~here, least))


def _own_columns(z: Float[Tensor, "i t"], own: int, each: int) -> tuple[Int[Tensor, "i k"], Bool[Tensor, "i k"]]:
    """The columns of each image's own texts, and whether they are in this tile; if not, the column is another one."""
    column = own + each * torch.arange(len(z), device=z.device)[:, None] + torch.arange(each, device=z.device)
    return column.clamp(0, z.shape[1] - 1), (column >= 0) & (column < z.shape[1])


def _combined(
    rows: Iterator[list[tuple[Tensor, ...]]],
) -> tuple[Float[Tensor, "I K ..."], Float[Tensor, "T ..."], list[Float[Tensor, ""]]]:
    """Combine what all tiles return: log-sum-exps over texts, log-sum-exps over images, and numbers.

    The log-sum-exps are those of this rank's images and of this rank's texts. The numbers are added.
    """
    over_texts, over_images, totals = [], [], []
    for row in rows:
        texts, images, *numbers = zip(*row, strict=True)
        over_texts.append(_log_sum_exp(texts))
        over_images.append(torch.cat(images))
        totals.append([torch.stack(number).sum() for number in numbers])
    to_images = distributed.logsumexp(distributed.in_rank_order(_log_sum_exp(over_images)))
    return torch.cat(over_texts), to_images, [torch.stack(number).sum() for number in zip(*totals, strict=True)]


def _log_sum_exp(parts: Sequence[Float[Tensor, "*n"]]) -> Float[Tensor, "*n"]:
    """The log-sum-exp of several log-sum-exps, over the parts; one part is the result."""
    return parts[0] if len(parts) == 1 else torch.stack(tuple(parts)).logsumexp(0)


def _is_own(z: Float[Tensor, "i *n t"], own: int, each: int) -> Bool[Tensor, "i t"]:
    """Whether each text of a tile belongs to each of its images."""
    place = torch.arange(z.shape[-1], device=z.device) - own
    return place.div(each, rounding_mode="floor") == torch.arange(len(z), device=z.device)[:, None]


def _tiles_of_all(tile: Callable[[I, T, int], Any], images: I, texts: T, pair_size: int | None) -> Iterator[list[Any]]:
    """`_tiles` for this rank's images and the texts of all ranks, in the order of `distributed.visit`."""
    each = _texts_per_image(images, texts)
    if distributed.in_ring():
        return _tiles(tile, images, distributed.as_long(texts), pair_size, each, ranks=distributed.world_size())
    own = distributed.rank() * len(texts)
    return _tiles(tile, images, distributed.gather(texts), pair_size, each, own)


def _tiles(
    tile: Callable[[I, T, int], Any],
    images: I,
    texts: T,
    pair_size: int | None,
    each: int = 1,
    own: int = 0,
    ranks: int = 1,
) -> Iterator[list[Any]]:
    """`tile(images, texts, own)` of every tile, as one list per row of tiles.

    Args:
        tile: Function of a tile. Its argument `own` is the position of the tile's own pairs: `scores.diagonal(own)`,
            which is empty if there are none, or `_is_own` if images have several texts.
        images: This rank's images; see `info_nce`.
        texts: The texts of all columns, or, if `ranks` is above 1, this rank's share of them.
        pair_size: How many numbers `tile` computes per pair; see `info_nce`.
        each: Number of texts per image.
        own: Position of the first text of the first image.
        ranks: Number of ranks from which texts are fetched, one tile at a time, starting with this rank.
    """
    height, width = _tile_size(images, texts, pair_size)
    if (height, width, ranks) == (len(images), len(texts), 1):
        yield [tile(images, texts, own)]
        return

    def fetched(images: I, texts: T, own: int, places: int) -> Any:
        return tile(images, distributed.rotate(texts, places), own)

    again = partial(checkpoint, fetched, use_reentrant=False, preserve_rng_state=False)
    blocks = _split(images, height)
    for i, rows in enumerate(blocks):
        row = []
        for places in range(ranks):
            # Split for every rank, so that the backward pass can send one rank's gradient before the next one's.
            columns = _split(texts, width)
            for j, some in enumerate(columns):
                last = (i + 1, places + 1, j + 1) == (len(blocks), ranks, len(columns))
                place = own + i * height * each - places * len(texts) - j * width
                row.append((fetched if last else again)(rows, some, place, places))
        yield row


def _tile_size(images: I, texts: T, pair_size: int | None) -> tuple[int, int]:
    """The number of images and of texts of a tile; for `pair_size`, see `info_nce`."""
    if pair_size is None:
        pair_size = max(_vectors(images) * _vectors(texts), 1)
    device = (images if isinstance(images, Tensor) else images.pooled).device
    pairs = max(BUDGET * (1 if device.type == "cpu" else 16) // pair_size, 1)
    # Tiles have few images and many texts, so that what a score prepares for an image is computed for few tiles.
    height = min(max(pairs // len(texts), 1), len(images))
    return height, min(pairs // height, len(texts))


def _vectors(side: Side) -> int:
    """The number of D-dimensional vectors of each image, or of each text."""
    if isinstance(side, Tensor):
        return math.prod(side.shape[1:-1])
    return side.patches.shape[1] if isinstance(side, Images) else side.tokens.shape[1]


def _split(side: Side, size: int) -> list[Side]:
    """`side` in parts of `size`. With slices, the gradient of each part would be as large as the complete tensor."""
    if isinstance(side, Tensor):
        return list(side.split(size))
    members = {field.name: getattr(side, field.name) for field in fields(side)}
    parts = {name: x.split(size) for name, x in members.items() if isinstance(x, Tensor)}
    count = -(-len(side) // size)
    return [replace(side, **{n: x[i] for n, x in parts.items()}) for i in range(count)]
