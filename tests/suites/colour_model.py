"""A model that knows the grey of each patch and which grey a word means, so that its maps are known by hand."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from patchword.encoders.base import Tokens
from patchword.features import Images, Texts
from tests.suites.published_regions import STEP

GRID = (4, 4)


class Colours:
    """Patches and words are the one-hot vectors of their greys; a text's last word counts.

    Args:
        greys: The grey that each word means; other words mean none of the greys in images.
    """

    query = "content"

    def __init__(self, greys: dict[str, int]) -> None:
        self.greys = greys
        self.objective = SimpleNamespace(local_score=False, align=self.align)

    def encode_images(self, pixels: Tensor) -> Images:
        blocks = pixels[:, 0].float().unflatten(1, (GRID[0], -1)).unflatten(3, (GRID[1], -1)).mean((2, 4))
        patches = one_hot(blocks.flatten(1) / STEP)
        return Images(patches.mean(1), patches, GRID)

    def encode_texts(self, captions: Sequence[str]) -> tuple[Texts, Tokens]:
        pooled = one_hot(torch.tensor([float(self.greys.get(caption, 15)) for caption in captions]))
        spans = torch.tensor([[[0, len(caption)]] for caption in captions])
        mask = torch.ones(len(captions), 1, dtype=torch.bool)
        tokens = Tokens(list(captions), mask.long(), mask, ~mask, spans, ~mask[:, 0], torch.zeros_like(mask))
        return Texts(pooled, pooled[:, None], mask), tokens

    def align(self, images: Images, texts: Texts) -> Tensor:
        return texts.tokens @ images.patches.mT


def one_hot(greys: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(greys.round().long(), 16).float()


def model(greys: dict[str, int]) -> Any:
    """What a suite asks of an `AlignmentModule`."""
    return Colours(greys)
