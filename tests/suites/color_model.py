"""A model that knows the gray value of each patch and of each word, so that its maps can be derived by hand."""

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


class Colors:
    """Embeds patches and words as one-hot vectors of their gray values; the last word of a text counts.

    Args:
        grays: The gray value of each word. Other words have a gray value that does not occur in images.
    """

    phrase_query = "content"
    map_sources = ("align", "cosine", "dot")

    def __init__(self, grays: dict[str, int]) -> None:
        self.grays = grays
        self.objective = SimpleNamespace(uses_local_features=False, align=self.align)

    def encode_images(self, pixels: Tensor) -> Images:
        blocks = pixels[:, 0].float().unflatten(1, (GRID[0], -1)).unflatten(3, (GRID[1], -1)).mean((2, 4))
        patches = one_hot(blocks.flatten(1) / STEP)
        return Images(patches.mean(1), patches, GRID)

    def encode_texts(self, captions: Sequence[str]) -> tuple[Texts, Tokens]:
        pooled = one_hot(torch.tensor([float(self.grays.get(caption, 15)) for caption in captions]))
        spans = torch.tensor([[[0, len(caption)]] for caption in captions])
        mask = torch.ones(len(captions), 1, dtype=torch.bool)
        tokens = Tokens(list(captions), mask.long(), mask, ~mask, spans, ~mask[:, 0], torch.zeros_like(mask))
        return Texts(pooled, pooled[:, None], mask), tokens

    def align(self, images: Images, texts: Texts) -> Tensor:
        return texts.tokens @ images.patches.mT


def one_hot(grays: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(grays.round().long(), 16).float()


def model(grays: dict[str, int]) -> Any:
    """A stand-in for the parts of `AlignmentModule` that a suite uses."""
    return Colors(grays)
