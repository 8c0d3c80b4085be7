"""Retrieval between all images and all captions of an evaluation set.

    image_to_text/r@K      share of images with any of their captions among the K best captions
    text_to_image/r@K      share of captions with their image among the K best images
    */median_rank          median rank of the first right answer, from 1 (the mean of the middle two, if two)
    */chance_r@K           the exact expectation of r@K for a random ranking

These are the recalls of Karpathy & Fei-Fei, CVPR 2015, arXiv 1412.2306, section 4.2, as CLIP and COCO retrieval report
them, not the share of relevant captions. Ties count against the model: a wrong candidate that scores as high as the
right one ranks before it, so that constant scores find nothing. So does a NaN. Scores that differ by rounding only are
a tie: equal captions have embeddings that differ in the last place where their batches were padded to other lengths.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from patchword.features import Images, Texts
from patchword.metrics.unique import first_of_each

KS = (1, 5, 10)

_ROUNDING = 1e-6  # of the largest right score: some ten units in the last place of float32


class Retrieval(Metric):
    """Recalls and median ranks by an objective's score, each sample id counted once.

    It keeps embeddings and makes the matrix of scores at the end, block by block. `compute` returns the numbers
    above and `images` and `captions`, their numbers. With `tokens`, it keeps 4 D P bytes per image in float32:
    2 GB for 5,000 images of 196 patches in 512 dimensions. On several ranks, each must have seen a batch.

    Args:
        score: The scores of any images with any texts: an objective's `score`.
        text_score: Likewise, where texts rank images; None for `score`.
        tokens: Keep patches and tokens as well, for a score that needs more than the pooled embeddings.
        block: Images and captions scored at a time.
        folds: Parts of equal size, consecutive in the order of ids, that are ranked apart; the numbers are means over
            them (COCO's 1k protocol has five).
    """

    full_state_update = False
    ids: list[Tensor]
    captions: list[Tensor]
    image_pooled: list[Tensor]
    text_pooled: list[Tensor]
    patches: list[Tensor]
    text_tokens: list[Tensor]
    lengths: list[Tensor]
    grid: Tensor

    def __init__(
        self,
        score: Callable[[Images, Texts], Float[Tensor, "I T"]],
        tokens: bool = False,
        block: int = 1024,
        text_score: Callable[[Images, Texts], Float[Tensor, "I T"]] | None = None,
        folds: int = 1,
    ) -> None:
        super().__init__()
        self.score, self.tokens, self.block, self.text_score, self.folds = score, tokens, block, text_score, folds
        for name in ("ids", "captions", "image_pooled", "text_pooled", "patches", "text_tokens", "lengths"):
            self.add_state(name, [], dist_reduce_fx="cat")
        self.add_state("grid", torch.zeros(2, dtype=torch.long), dist_reduce_fx="max")

    def update(self, images: Images, texts: Texts, caption_image: Int[Tensor, " T"], ids: Int[Tensor, " I"]) -> None:
        """Keep a batch.

        Args:
            images: Embedded images.
            texts: Embedded captions.
            caption_image: The image of each caption.
            ids: The sample id of each image.

        Raises:
            ValueError: If an image has no caption.
        """
        captions = caption_image.bincount(minlength=len(ids))
        if (captions == 0).any():
            raise ValueError("retrieval needs at least one caption for every image")
        texts = texts[caption_image.argsort(stable=True)]
        grid = images.grid if self.tokens else (1, 0)
        kept = texts.mask if self.tokens else texts.mask[:, :0]
        # Captions of any length, end to end: objectives read the tokens in the mask only.
        self.text_tokens.append(texts.tokens[:, : kept.shape[1]][kept].detach())
        self.lengths.append(kept.sum(-1))
        self.patches.append(images.patches[:, : grid[0] * grid[1]].detach())
        self.grid = torch.tensor(grid, device=self.grid.device)
        self.ids.append(ids)
        self.captions.append(captions)
        self.image_pooled.append(images.pooled.detach())
        self.text_pooled.append(texts.pooled.detach())

    def compute(self) -> dict[str, float]:
        """The numbers above; NaN, and 0 images, before the first batch."""
        if len(self.ids) == 0:
            nothing = torch.zeros(0, dtype=torch.long)
            return recalls(nothing, nothing, nothing)
        found = [self._recalls(fold) for fold in self._once().chunk(self.folds)]
        return {name: sum(one[name] for one in found) / len(found) for name in found[0]}

    def _recalls(self, images: Int[Tensor, " I"]) -> dict[str, float]:
        """The numbers of the images at these positions among themselves."""
        texts, image = self._captions(images)
        scores = self._scores(self.score, images, texts)
        image_rank, text_rank = ranks(scores, image)
        if self.text_score is not None:
            _, text_rank = ranks(self._scores(self.text_score, images, texts), image)
        return recalls(image_rank, text_rank, image)

    def _once(self) -> Int[Tensor, " I"]:
        """The position of every image, each once, in the order of ids."""
        ids = dim_zero_cat(self.ids)
        first = first_of_each(ids)
        return first[ids[first].argsort()]

    def _captions(self, images: Int[Tensor, " I"]) -> tuple[Int[Tensor, " T"], Int[Tensor, " T"]]:
        """The positions of the captions of the images at these positions, and the image, from 0, of each caption."""
        captions = dim_zero_cat(self.captions)
        image = torch.arange(len(images), device=images.device).repeat_interleave(captions[images])
        first = (captions.cumsum(0) - captions)[images]
        own = (captions[images].cumsum(0) - captions[images])[image]
        return first[image] + torch.arange(len(image), device=images.device) - own, image

    def _scores(
        self,
        score: Callable[[Images, Texts], Float[Tensor, "I T"]],
        image: Int[Tensor, " I"],
        text: Int[Tensor, " T"],
    ) -> Float[Tensor, "I T"]:
        """The scores of the images and texts at these positions; one block at a time is embedded."""
        images = Images(dim_zero_cat(self.image_pooled), dim_zero_cat(self.patches), _pair(self.grid))
        texts = _Ragged(dim_zero_cat(self.text_pooled), dim_zero_cat(self.text_tokens), dim_zero_cat(self.lengths))
        scores = torch.empty(len(image), len(text), device=image.device)
        for i in range(0, len(image), self.block):
            rows = images[image[i : i + self.block]]
            for t in range(0, len(text), self.block):
                columns = texts.padded(text[t : t + self.block])
                scores[i : i + self.block, t : t + self.block] = score(rows, columns)
        return scores


@dataclass(frozen=True)
class _Ragged:
    """Texts whose K tokens in all lie end to end, without padding."""

    pooled: Float[Tensor, "T D"]
    tokens: Float[Tensor, "K D"]
    lengths: Int[Tensor, " T"]

    def padded(self, index: Int[Tensor, " n"]) -> Texts:
        """The texts at `index`, padded with zeros to the longest of them."""
        lengths = self.lengths[index, None]
        column = torch.arange(int(lengths.max()), device=index.device)
        mask = column < lengths
        first = (self.lengths.cumsum(0) - self.lengths)[index, None]
        tokens = self.tokens.new_zeros(*mask.shape, self.tokens.shape[-1])
        tokens[mask] = self.tokens[(first + column)[mask]]
        return Texts(self.pooled[index], tokens, mask)


def ranks(
    scores: Float[Tensor, "I T"], caption_image: Int[Tensor, " T"]
) -> tuple[Int[Tensor, " I"], Int[Tensor, " T"]]:
    """The rank, from 1, of each image's first right caption and of each caption's image.

    Args:
        scores: Higher is better.
        caption_image: The image of each caption; every image has one.
    """
    own = scores[caption_image, torch.arange(len(caption_image), device=scores.device)]
    best = scores.new_full((len(scores),), -torch.inf).scatter_reduce(0, caption_image, own, "amax")
    rounding = _ROUNDING * own.nan_to_num(0, 0, 0).abs().max()
    # Not "at least": whatever is not below the right answer, NaN included, ranks before it.
    before = (~(scores < (best - rounding)[:, None])).sum(1)
    right = torch.zeros_like(before).index_add(0, caption_image, (~(own < (best - rounding)[caption_image])).long())
    return before - right + 1, (~(scores < own - rounding)).sum(0)


def recalls(
    image_rank: Int[Tensor, " I"], text_rank: Int[Tensor, " T"], caption_image: Int[Tensor, " T"]
) -> dict[str, float]:
    """The numbers above, from the ranks of `ranks`."""
    images, captions = len(image_rank), len(text_rank)
    right = caption_image.bincount(minlength=images)
    result = {"images": float(images), "captions": float(captions)}
    for name, rank in ("image_to_text", image_rank), ("text_to_image", text_rank):
        for k in KS:
            result[f"{name}/r@{k}"] = float((rank <= k).double().mean())
        result[f"{name}/median_rank"] = float(np.median(rank.cpu().numpy())) if len(rank) else math.nan
    for k in KS:
        result[f"image_to_text/chance_r@{k}"] = float(_chance(right, captions, k).mean())
        result[f"text_to_image/chance_r@{k}"] = min(k / images, 1.0) if images else math.nan
    return result


def _chance(right: Int[Tensor, " I"], captions: int, k: int) -> Float[Tensor, " I"]:
    """1 - C(T - r, k) / C(T, k): that k of T captions drawn at random hold one of the r right ones."""
    missed = torch.ones_like(right, dtype=torch.float64)
    for drawn in range(min(k, captions)):
        missed *= (captions - right - drawn).clamp_min(0) / (captions - drawn)
    return 1 - missed


def _pair(grid: Int[Tensor, " 2"]) -> tuple[int, int]:
    rows, columns = grid.tolist()
    return rows, columns
