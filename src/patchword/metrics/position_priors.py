"""Two baselines that know where objects of the training data are, and do not look at the image.

    mean_prior   the mean map of all phrases of the training split that have boxes: for each cell of a 24 x 24 grid over
                 what the model sees of the image, the mean share of the cell that the boxes of a phrase cover
    class_prior  the mean map of the training phrases with the same last word ("man" for "the young man"); the mean map
                 of all phrases for a word with fewer than 5 of them

A map that is no better than these has learned at most where photographers place things.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from patchword.data.pixels import Box
from patchword.errors import UserError

Prior = Literal["mean_prior", "class_prior"]
PRIORS: tuple[Prior, ...] = get_args(Prior)

GRID = (24, 24)
FEWEST = 5  # a word with fewer training phrases has no map of its own

_BLOCK = 4096  # phrases at a time


@dataclass(frozen=True)
class PositionPriors:
    """The mean maps of training phrases.

    Attributes:
        mean: The mean over all phrases.
        classes: The mean over the phrases of each class. Shape [C, P].
        words: The class of each last word, in lower case.
        phrases: The number of phrases.
    """

    mean: Float[Tensor, " P"]
    classes: Float[Tensor, "C P"]
    words: dict[str, int]
    phrases: int

    def maps(self, prior: Prior, phrases: Sequence[str]) -> Float[Tensor, "N P"]:
        """The map of each phrase on a grid of `GRID`."""
        if prior == "mean_prior":
            return self.mean.expand(len(phrases), -1)
        every = torch.cat([self.classes, self.mean[None]])
        return every[[self.words.get(last_word(phrase), len(self.classes)) for phrase in phrases]]


def training_priors(phrases: Iterable[tuple[str, Sequence[Box]]]) -> PositionPriors | None:
    """Compute `position_priors` and log how long it took; None if the training split cannot be read."""
    start = time.perf_counter()
    try:
        priors = position_priors(phrases)
    except UserError as error:  # a test does not need the training split
        rank_zero_info(f"the training split cannot be read for position priors: {error}")
        return None
    if priors is not None:
        rank_zero_info(
            f"position priors from the boxes of {priors.phrases} training phrases, {len(priors.words)} of whose last "
            f"words have maps of their own ({time.perf_counter() - start:.1f} s)"
        )
    return priors


@cache
def tell_absent() -> None:
    """Log once that there are no priors."""
    rank_zero_info(f"{' and '.join(PRIORS)} are not measured, because the training split has no phrases with boxes")


def position_priors(phrases: Iterable[tuple[str, Sequence[Box]]]) -> PositionPriors | None:
    """Compute the mean maps.

    Args:
        phrases: The text and the boxes of each training phrase. The edges of boxes are fractions of what the model sees
            of the image, from 0 to 1. Phrases without boxes are left out.

    Returns:
        The maps; None if no phrase has a box.
    """
    index: dict[str, int] = {}
    owner: list[int] = []
    boxes: list[Box] = []
    of_phrase: list[int] = []
    for text, own in phrases:
        if own:
            owner.append(index.setdefault(last_word(text), len(index)))
            boxes += own
            of_phrase += [len(owner) - 1] * len(own)
    if not owner:
        return None
    words, total = np.array(owner), np.zeros((len(index), GRID[0] * GRID[1]))
    edges, phrase = np.array(boxes, dtype=float), np.array(of_phrase)
    for start in range(0, len(words), _BLOCK):
        own_boxes = slice(*phrase.searchsorted([start, start + _BLOCK]))
        count = len(words[start : start + _BLOCK])
        np.add.at(total, words[start : start + _BLOCK], _covered(edges[own_boxes], phrase[own_boxes] - start, count))
    number = np.bincount(words, minlength=len(index))
    kept = [word for word, place in index.items() if number[place] >= FEWEST]
    places = [index[word] for word in kept]
    classes = total[places] / number[places][:, None]
    return PositionPriors(
        mean=torch.from_numpy(total.sum(0) / len(words)).float(),
        classes=torch.from_numpy(classes).float(),
        words={word: n for n, word in enumerate(kept)},
        phrases=len(words),
    )


def last_word(phrase: str) -> str:
    """The last word of a phrase in lower case; empty if it has no word."""
    words = re.findall(r"\w+(?:['’-]\w+)*", phrase)
    return words[-1].lower() if words else ""


def _covered(boxes: Float[np.ndarray, "K 4"], phrase: np.ndarray, phrases: int) -> Float[np.ndarray, "N P"]:
    """The share of each cell that the boxes of each phrase cover. Where boxes overlap, shares are added, up to 1."""
    share = _along(boxes[:, 1], boxes[:, 3], GRID[0])[:, :, None] * _along(boxes[:, 0], boxes[:, 2], GRID[1])[:, None]
    total = np.zeros((phrases, *GRID))
    np.add.at(total, phrase, share)
    return total.clip(max=1).reshape(phrases, -1)


def _along(low: Float[np.ndarray, " K"], high: Float[np.ndarray, " K"], cells: int) -> Float[np.ndarray, "K cells"]:
    """The share of each cell along one axis between `low` and `high`."""
    start = np.arange(cells)
    return (np.minimum(high[:, None] * cells, start + 1) - np.maximum(low[:, None] * cells, start)).clip(0)
