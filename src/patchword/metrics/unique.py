"""Count each sample once: distributed samplers repeat samples so that all ranks have the same number."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor


def first_of_each(keys: Int[Tensor, N * K]) -> Int[Tensor, " U"]:
    """The positions, in ascending order, of the first occurrence of each key (a number or a row of numbers)."""
    unique, inverse = keys.unique(dim=0, return_inverse=True)
    position = torch.arange(len(keys), device=keys.device)
    first = torch.full_like(position, len(keys))[: len(unique)].scatter_reduce(0, inverse, position, "amin")
    return first.sort().values
