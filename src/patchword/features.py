"""The two values that flow through patchword: what the encoders make of images and of texts.

Both live in one D-dimensional space and are *not* normalised: an objective that compares directions
normalises where its paper does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """I images as one global vector and P patch vectors each.

    Attributes:
        pooled: Global embeddings, un-normalised, floating point.
        patches: Patch embeddings, un-normalised, row by row from the top left. Images have no padding.
        grid: Rows and columns of the patch grid; their product is P.
    """

    pooled: Float[Tensor, "I D"]
    patches: Float[Tensor, "I P D"]
    grid: tuple[int, int]

    def __post_init__(self) -> None:
        rows, columns = self.grid
        if rows * columns != self.patches.shape[1]:
            raise ValueError(f"a grid of {rows} x {columns} does not hold {self.patches.shape[1]} patches")

    def __len__(self) -> int:
        return len(self.pooled)

    def __getitem__(self, index: slice | Int[Tensor, " n"]) -> Images:
        """The images at `index`, a slice or a tensor of positions (repeats allowed)."""
        return Images(self.pooled[index], self.patches[index], self.grid)


@dataclass(frozen=True)
class Texts:
    """T texts as one global vector and L token vectors each.

    Attributes:
        pooled: Global embeddings, un-normalised, floating point.
        tokens: Token embeddings, un-normalised. What padding holds is arbitrary.
        mask: True where a token takes part in token-level losses and maps; False on padding and on
            tokens that were deselected (special tokens, function words).
        phrases: The phrase of its caption that each token belongs to, from 0; -1 for none. None where the data
            names no phrases.
    """

    pooled: Float[Tensor, "T D"]
    tokens: Float[Tensor, "T L D"]
    mask: Bool[Tensor, "T L"]
    phrases: Int[Tensor, "T L"] | None = None

    def __len__(self) -> int:
        return len(self.pooled)

    def __getitem__(self, index: slice | Int[Tensor, " n"]) -> Texts:
        """The texts at `index`, a slice or a tensor of positions (repeats allowed)."""
        return map_tensors(self, lambda x: x[index])


Value = TypeVar("Value")


def map_tensors(value: Value, function: Callable[[Tensor], Tensor]) -> Value:
    """A copy of the dataclass `value` with `function` applied to each field that is a tensor."""
    names = [field.name for field in fields(value)]  # type: ignore[arg-type]
    changes: dict[str, Any] = {n: function(x) for n in names if isinstance(x := getattr(value, n), Tensor)}
    return replace(value, **changes)  # type: ignore[type-var]
