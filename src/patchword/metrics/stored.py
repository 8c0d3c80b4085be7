"""Read rows of tensors that are stored batch by batch, without concatenating the batches, which would copy them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from patchword.features import Texts


def rows(batches: Sequence[Shaped[Tensor, "_ ..."]], index: Int[Tensor, " n"]) -> Shaped[Tensor, "n ..."]:
    """The rows at `index` of all batches, which follow one another; equal to `torch.cat(batches)[index]`."""
    ends = torch.tensor([len(batch) for batch in batches], device=index.device).cumsum(0)
    number = torch.bucketize(index, ends, right=True)
    found = batches[0].new_empty(len(index), *batches[0].shape[1:])
    for n in number.unique().tolist():
        at = (number == n).nonzero()[:, 0]
        found[at] = batches[n][index[at] - (ends[n] - len(batches[n]))]
    return found


@dataclass(frozen=True)
class Ragged:
    """Texts whose tokens are stored batch by batch without padding.

    Attributes:
        pooled: Global embeddings.
        tokens: The tokens of the texts of each batch, one text after the other.
        lengths: The number of tokens of each text.
    """

    pooled: Float[Tensor, "T D"]
    tokens: Sequence[Float[Tensor, "_ D"]]
    lengths: Int[Tensor, " T"]

    def padded(self, index: Int[Tensor, " n"]) -> Texts:
        """The texts at `index`, padded with zeros to the longest of them."""
        lengths = self.lengths[index, None]
        column = torch.arange(int(lengths.max()), device=index.device)
        mask = column < lengths
        first = (self.lengths.cumsum(0) - self.lengths)[index, None]
        tokens = self.tokens[0].new_zeros(*mask.shape, self.tokens[0].shape[-1])
        tokens[mask] = rows(self.tokens, (first + column)[mask])
        return Texts(self.pooled[index], tokens, mask)
