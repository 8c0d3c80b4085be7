"""What every alignment objective answers: the loss, the score and the map."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from patchword.features import Images, Texts, map_tensors
from patchword.spec import Specified


class Objective(Specified, nn.Module, ABC):
    """An alignment objective: three questions about images and texts in one space.

    An objective knows nothing of Lightning, devices, ranks, data or logging. Its methods always run in
    float32 (float64 stays), outside autocast, whatever the caller's precision: half precision loses the
    differences that min-max weights and temperatures of 1/100 depend on.

    Attributes:
        local_score: Whether `score` looks at patches and tokens, not only at the pooled embeddings.
        many_captions: Whether `forward` takes K texts for each image, image by image, and counts all K as its own.
    """

    local_score: bool = False
    many_captions: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("forward", "score", "text_score", "align"):
            if name in vars(cls):
                setattr(cls, name, _in_full_precision(vars(cls)[name]))

    def setup(self, embed_dim: int) -> None:
        """Build the parameters that depend on the width D of the shared space; called once, before training."""

    @abstractmethod
    def forward(self, images: Images, texts: Texts) -> dict[str, Float[Tensor, ""]]:
        """Named loss terms, weights included, of the pairs (images[b], texts[b]); their sum is minimised."""

    @abstractmethod
    def score(self, images: Images, texts: Texts) -> Float[Tensor, "I T"]:
        """How well each image fits each text, higher is better; the score of a pair needs no other pair."""

    def text_score(self, images: Images, texts: Texts) -> Float[Tensor, "I T"]:
        """Likewise, where a text ranks images: `score`, unless an objective has one for each direction (FILIP)."""
        return self.score(images, texts)

    @abstractmethod
    def align(self, images: Images, texts: Texts) -> Float[Tensor, "B L P"]:
        """How much each token of texts[b] belongs to each patch of images[b], higher is more.

        Rows where `texts.mask` is False are zero.
        """


def _in_full_precision(method: Any) -> Any:
    """`method` outside autocast, its half-precision inputs widened to float32, its masked tokens zero.

    Whatever padding holds, NaN included, can therefore reach neither a loss nor a gradient.
    """

    @functools.wraps(method)
    def wrapper(self: Objective, images: Images, texts: Texts) -> Any:
        with torch.autocast(images.pooled.device.type, enabled=False):
            images, texts = map_tensors(images, _widen), map_tensors(texts, _widen)
            texts = replace(texts, tokens=texts.tokens.masked_fill(~texts.mask[..., None], 0))
            return method(self, images, texts)

    return wrapper


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
