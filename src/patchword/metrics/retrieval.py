"""Retrieval between all images and all captions of an evaluation set.

    image_to_text/r@K      share of images with any of their captions among the K captions with the highest scores
    text_to_image/r@K      share of captions with their image among the K images with the highest scores
    */median_rank          median rank, from 1, of the first right answer (for an even number of ranks, the mean of the
                           middle two)
    */chance_r@K           the exact expectation of r@K for a random ranking

These are the recalls of Karpathy & Fei-Fei, CVPR 2015, arXiv 1412.2306, section 4.2, as CLIP and COCO retrieval report
them, not the share of relevant captions. Ties count against the model: a wrong candidate with the same score as the
right one is ranked before it, so that constant scores find nothing. A wrong candidate with the score NaN is also ranked
first. Scores that differ by rounding only are a tie: the embeddings of equal captions can differ in the last digit if
their batches were padded to different lengths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from patchword.features import Images, Texts
from patchword.metrics.bootstrap import ImageTotals
from patchword.metrics.stored import Ragged, rows
from patchword.metrics.ties import tolerance
from patchword.metrics.unique import first_of_each
from patchword.objective import Objective

KS = (1, 5, 10)
ROWS = 256  # of scores that are compared at a time: torch counts in integers of eight times the size of a boolean
Scores = Float[Tensor, "I T"] | tuple[Float[Tensor, "I T"], Float[Tensor, "I T"]]


class Retrieval(Metric):
    """Recalls and median ranks of an objective's score; each sample id counts once.

    This metric stores embeddings and computes the matrix of scores at the end, block by block. `compute` returns the
    metrics above, and `images` and `captions`, the numbers of images and captions. With `tokens`, it stores 4 D P bytes
    per image in float32: 2 GB for 5,000 images of 196 patches in 512 dimensions. One process copies one block of them
    at a time; several ranks exchange all of them, and each rank must have seen a batch.

    Args:
        score: A function that scores images with texts: an objective's `score`, or its `scores`, which returns a pair.
            The first one of the pair ranks texts for an image, and the second one ranks images for a text.
        tokens: Store patches and tokens, too, for a score that needs more than the pooled embeddings.
        block: The number of images, and of captions, that are scored at a time.
        folds: The number of parts of equal size, consecutive in the order of ids, that are ranked separately. The
            metrics are means over the parts. COCO's 1k protocol has five.

    Attributes:
        totals: After `compute` without folds, the totals of each image, for confidence intervals of the recalls.
    """

    full_state_update = False
    totals: ImageTotals | None = None
    ids: list[Tensor]
    captions: list[Tensor]
    image_pooled: list[Tensor]
    text_pooled: list[Tensor]
    patches: list[Tensor]
    masks: list[Tensor]
    text_tokens: list[Tensor]
    lengths: list[Tensor]
    grid: Tensor

    def __init__(
        self,
        score: Callable[[Images, Texts], Scores],
        tokens: bool = False,
        block: int = 256,
        folds: int = 1,
    ) -> None:
        super().__init__()
        self.score, self.tokens, self.block, self.folds = score, tokens, block, folds
        for name in ("ids", "captions", "image_pooled", "text_pooled", "patches", "masks", "text_tokens", "lengths"):
            self.add_state(name, [], dist_reduce_fx="cat")
        self.add_state("grid", torch.zeros(2, dtype=torch.long), dist_reduce_fx="max")

    def update(self, images: Images, texts: Texts, caption_image: Int[Tensor, " T"], ids: Int[Tensor, " I"]) -> None:
        """Store a batch of images and their captions, with the image of each caption and the id of each image.

        Raises:
            ValueError: If an image has no caption.
        """
        captions = caption_image.bincount(minlength=len(ids))
        if (captions == 0).any():
            raise ValueError("retrieval needs at least one caption for every image")
        texts = texts[caption_image.argsort(stable=True)]
        grid = images.grid if self.tokens else (1, 0)
        kept = texts.mask if self.tokens else texts.mask[:, :0]
        # Tokens of all captions are concatenated without padding: objectives read only tokens in the mask.
        self.text_tokens.append(texts.tokens[:, : kept.shape[1]][kept].detach())
        self.lengths.append(kept.sum(-1))
        self.patches.append(images.patches[:, : grid[0] * grid[1]].detach())
        mask = images.patches.new_ones(len(images), 0, dtype=torch.bool) if images.mask is None else images.mask
        self.masks.append(mask[:, : grid[0] * grid[1]])
        self.grid = torch.tensor(grid, device=self.grid.device)
        self.ids.append(ids)
        self.captions.append(captions)
        self.image_pooled.append(images.pooled.detach())
        self.text_pooled.append(texts.pooled.detach())

    def compute(self) -> dict[str, float]:
        """The metrics above; NaN, and 0 images, before the first batch."""
        if len(self.ids) == 0:
            nothing = torch.zeros(0, dtype=torch.long)
            return recalls(nothing, nothing, nothing)
        found = [self._recalls(fold) for fold in self._once().chunk(self.folds)]
        return {name: sum(one[name] for one in found) / len(found) for name in found[0]}

    def _recalls(self, images: Int[Tensor, " I"]) -> dict[str, float]:
        """The metrics of the images at these positions, ranked among themselves."""
        texts, image = self._captions(images)
        scores = self._scores(images, texts)
        image_rank, text_rank = ranks(scores[0], image)
        if len(scores) == 2:
            _, text_rank = ranks(scores[1], image)
        if self.folds == 1:
            self.totals = recall_totals(image_rank, text_rank, image)
        return recalls(image_rank, text_rank, image)

    def _once(self) -> Int[Tensor, " I"]:
        """The positions of the images in the order of ids, without repeated images."""
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

    def _scores(self, image: Int[Tensor, " I"], text: Int[Tensor, " T"]) -> Float[Tensor, "S I T"]:
        """The one or two scores of the images and texts at these positions, computed block by block."""
        texts = Ragged(dim_zero_cat(self.text_pooled), _batches(self.text_tokens), dim_zero_cat(self.lengths))
        scores = torch.empty(0, len(image), len(text), device=image.device)
        for i in range(0, len(image), self.block):
            images = self._images(image[i : i + self.block])
            for t in range(0, len(text), self.block):
                found = self.score(images, texts.padded(text[t : t + self.block]))
                both = found if isinstance(found, tuple) else (found,)
                if len(scores) == 0:
                    scores = scores.new_empty(len(both), len(image), len(text))
                for one, block in zip(scores, both, strict=True):
                    one[i : i + self.block, t : t + self.block] = block
        return scores

    def _images(self, index: Int[Tensor, " n"]) -> Images:
        """A copy of the images at these positions."""
        mask = dim_zero_cat(self.masks)[index]  # without columns if the images have no padding
        height, width = self.grid.tolist()
        pooled, patches = dim_zero_cat(self.image_pooled)[index], rows(_batches(self.patches), index)
        return Images(pooled, patches, (height, width), mask if mask.shape[1] else None)


def own_retrieval(objective: Objective, folds: int = 1) -> Retrieval:
    """Return an empty `Retrieval` by the objective's own scores; see `Retrieval` for `folds`."""
    score = objective.scores if objective.has_two_scores else objective.score
    return Retrieval(score, objective.uses_local_features, folds=folds)


def _batches(state: Tensor | list[Tensor]) -> Sequence[Tensor]:
    """The batches of a state, which is one tensor after an exchange between ranks."""
    return [state] if isinstance(state, Tensor) else state


def ranks(
    scores: Float[Tensor, "I T"], caption_image: Int[Tensor, " T"]
) -> tuple[Int[Tensor, " I"], Int[Tensor, " T"]]:
    """The rank, from 1, of each image's first right caption and of each caption's image; higher scores are better."""
    own = scores[caption_image, torch.arange(len(caption_image), device=scores.device)]
    best = scores.new_full((len(scores),), -torch.inf).scatter_reduce(0, caption_image, own, "amax")
    largest = own.nan_to_num(0, 0, 0).abs().max()
    rounding = tolerance(largest, largest)
    # What is not below the right answer is ranked before it: also NaN, which would not be at or above it.
    below, texts_below = [], torch.zeros_like(caption_image)
    for some, least in zip(scores.split(ROWS), (best - rounding).split(ROWS), strict=True):
        below.append((some < least[:, None]).sum(1))
        texts_below += (some < own - rounding).sum(0)
    before = scores.shape[1] - torch.cat(below)
    right = torch.zeros_like(before).index_add(0, caption_image, (~(own < (best - rounding)[caption_image])).long())
    return before - right + 1, len(scores) - texts_below


def recalls(
    image_rank: Int[Tensor, " I"], text_rank: Int[Tensor, " T"], caption_image: Int[Tensor, " T"]
) -> dict[str, float]:
    """The metrics above, computed from the results of `ranks`."""
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


def recall_totals(
    image_rank: Int[Tensor, " I"], text_rank: Int[Tensor, " T"], caption_image: Int[Tensor, " T"]
) -> ImageTotals:
    """The totals of each image for the recalls, from the results of `ranks`."""
    totals = ImageTotals(len(image_rank), caption_image)
    for k in KS:
        totals.add_ratio(f"image_to_text/r@{k}", image_rank <= k, torch.ones_like(image_rank))
        totals.add(f"text_to_image/r@{k}", (text_rank <= k).double())
    return totals


def _chance(right: Int[Tensor, " I"], captions: int, k: int) -> Float[Tensor, " I"]:
    """1 - C(T - r, k) / C(T, k): the probability that k of T captions, drawn at random, include one of r right ones."""
    missed = torch.ones_like(right, dtype=torch.float64)
    for drawn in range(min(k, captions)):
        missed *= (captions - right - drawn).clamp_min(0) / (captions - drawn)
    return 1 - missed
