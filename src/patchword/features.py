"""The two data types of patchword: the encoders' embeddings of images and of texts.

All embeddings are vectors of one D-dimensional space and are *not* normalized. An objective that compares directions
normalizes them where its paper does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Masked:
    """Encodes images or texts again, with some of their patches or tokens masked in the input, without gradient.

    Attributes:
        index: The place of each image or text in its batch.
        encode: Function of places [N] and of the patches or tokens that stay [N, K]. It returns global embeddings
            [N, D]. On several ranks, all must call it.
    """

    index: Int[Tensor, " I"]
    encode: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, at: Int[Tensor, " N"], keep: Bool[Tensor, "N K"]) -> Float[Tensor, "N D"]:
        """The global embeddings of the images or texts `at`, each with only the patches or tokens of `keep`."""
        return self.encode(self.index[at], keep)


@dataclass(frozen=True)
class Images:
    """I images, with one global vector and P patch vectors per image. What the data does not have is None.

    Attributes:
        pooled: Global embeddings, not normalized, floating point.
        patches: Patch embeddings, not normalized, row by row from the top left. The values of padding are arbitrary.
        grid: Numbers of rows and columns of the patch grid; their product is P.
        mask: True for patches, False for padding; None if all are patches. The patches of an image are a rectangle at
            the top left of the grid.
        negatives: Global embeddings of captions that are wrong for the image; zeros if it has fewer than M.
        regions: The share of each patch in each region, of sum 1; zeros if the image has fewer than R.
        region_texts: Global embeddings of the texts of the regions.
        masked: Encodes the images again, with some patches masked.
        views: Global embeddings of V crops of the image, large crops first.
        teacher: A teacher's global embeddings of the image itself and of its large crops, G in all; no gradient.
    """

    pooled: Float[Tensor, "I D"]
    patches: Float[Tensor, "I P D"]
    grid: tuple[int, int]
    mask: Bool[Tensor, "I P"] | None = None
    negatives: Float[Tensor, "I M D"] | None = None
    regions: Float[Tensor, "I R P"] | None = None
    region_texts: Float[Tensor, "I R D"] | None = None
    masked: Masked | None = None
    views: Float[Tensor, "I V D"] | None = None
    teacher: Float[Tensor, "I G D"] | None = None

    def __post_init__(self) -> None:
        rows, columns = self.grid
        if rows * columns != self.patches.shape[1]:
            raise ValueError(
                f"a grid of {rows} x {columns} does not hold {self.patches.shape[1]} patches: set grid to the "
                "numbers of rows and columns of the patches"
            )

    def __len__(self) -> int:
        return len(self.pooled)

    def count(self, dims: int = 0) -> int | Int[Tensor, "I ..."]:
        """The number of patches of each image, with `dims` more dimensions of size 1; P if there is no mask."""
        return self.patches.shape[1] if self.mask is None else self.mask.sum(-1).view(-1, *[1] * dims)

    @property
    def shapes(self) -> Int[Tensor, "I 2"]:
        """Numbers of rows and columns of each image's patches; those of the grid if there is no mask."""
        if self.mask is None:
            return torch.tensor(self.grid, device=self.pooled.device).expand(len(self), 2)
        cells = self.mask.unflatten(1, self.grid)
        return torch.stack([cells.any(2).sum(1), cells.any(1).sum(1)], 1)

    def __getitem__(self, index: slice | Int[Tensor, " n"]) -> Images:
        """The images at `index`, a slice or a tensor of positions (repeats allowed)."""
        return map_tensors(self, lambda x: x[index])

    def per_text(self, texts: Texts) -> Images:
        """Each image once for each of its texts, so that images[t] and texts[t] are a pair."""
        each = len(texts) // len(self)
        return self if each == 1 else map_tensors(self, lambda x: x.repeat_interleave(each, 0))


@dataclass(frozen=True)
class Texts:
    """T texts, with one global vector and L token vectors per text. What the data does not have is None.

    Attributes:
        pooled: Global embeddings, not normalized, floating point.
        tokens: Token embeddings, not normalized. The values of padding are arbitrary.
        mask: True for tokens that take part in token-level losses and maps; False for padding and for
            tokens that are not selected (special tokens, function words).
        phrases: Index of each token's phrase in its caption, starting at 0, on V levels; -1 for tokens outside all
            phrases. A phrase of one level can contain phrases of the levels before it, such as a sentence its words.
        ids: The tokenizer's number of each token, also of tokens that are not selected; -1 for padding.
        masked: Encodes the texts again, with some of the tokens of `mask` masked.
        teacher: A teacher's global embedding of each text; no gradient.
    """

    pooled: Float[Tensor, "T D"]
    tokens: Float[Tensor, "T L D"]
    mask: Bool[Tensor, "T L"]
    phrases: Int[Tensor, "T V L"] | None = None
    ids: Int[Tensor, "T L"] | None = None
    masked: Masked | None = None
    teacher: Float[Tensor, "T D"] | None = None

    def __len__(self) -> int:
        return len(self.pooled)

    def __getitem__(self, index: slice | Int[Tensor, " n"]) -> Texts:
        """The texts at `index`, a slice or a tensor of positions (repeats allowed)."""
        return map_tensors(self, lambda x: x[index])

    def padded(self, length: int, levels: int = 0) -> Texts:
        """The texts with padding up to L = `length`, and with empty levels of phrases up to V = `levels`."""
        more, present = length - self.mask.shape[1], 0 if self.phrases is None else self.phrases.shape[1]
        if more == 0 and levels <= present:
            return self
        phrases = None if self.phrases is None else pad(self.phrases, (0, more, 0, max(levels - present, 0)), value=-1)
        ids = None if self.ids is None else pad(self.ids, (0, more), value=-1)
        tokens, mask = pad(self.tokens, (0, 0, 0, more)), pad(self.mask, (0, more))
        return replace(self, tokens=tokens, mask=mask, phrases=phrases, ids=ids)


Value = TypeVar("Value")


def map_tensors(value: Value, function: Callable[[Tensor], Tensor]) -> Value:
    """A copy of the dataclass `value` with `function` applied to each field that is a tensor, also inside `Masked`."""
    members = {field.name: getattr(value, field.name) for field in fields(value)}  # type: ignore[arg-type]
    changes: dict[str, Any] = {name: function(x) for name, x in members.items() if isinstance(x, Tensor)}
    changes |= {name: map_tensors(x, function) for name, x in members.items() if isinstance(x, Masked)}
    return replace(value, **changes)  # type: ignore[type-var]
