"""One row of numbers per sample, gathered from all ranks; each sample is counted once."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from patchword.metrics.unique import first_of_each


class PerSample(Metric):
    """Stores K numbers per sample; `compute` returns those of the samples of all ranks, in the order of their ids.

    A sample that a distributed sampler repeats is counted once.

    Args:
        columns: The number of values per sample, K.
    """

    full_state_update = False
    ids: list[Tensor]
    values: list[Tensor]

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns = columns
        self.add_state("ids", [], dist_reduce_fx="cat")
        self.add_state("values", [], dist_reduce_fx="cat")

    def update(self, ids: Int[Tensor, " I"], values: Float[Tensor, "I K"]) -> None:
        """Store one row per sample of a batch."""
        self.ids.append(ids)
        self.values.append(values.double())

    def compute(self) -> Float[Tensor, "N K"]:
        """The rows of all samples, in double precision."""
        if len(self.ids) == 0:
            return torch.zeros(0, self.columns, dtype=torch.float64)
        ids = dim_zero_cat(self.ids)
        first = first_of_each(ids)
        return dim_zero_cat(self.values)[first[ids[first].argsort()]]
