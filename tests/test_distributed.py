"""Tests of gathering across ranks: values, gradients, and captions of different lengths."""

import torch
from torch.testing import assert_close

from patchword import Texts, distributed
from tests.ranks import on_ranks


def _gather_and_backward(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = (torch.arange(6.0).view(2, 3) + 10 * rank).requires_grad_()
    weights = torch.arange(12.0).view(3, 4).T + rank  # not contiguous, different on each rank
    gathered = distributed.gather(x)
    (gathered * weights).sum().backward()
    return gathered.detach(), x.grad


def test_gather_concatenates_and_returns_every_ranks_gradient() -> None:
    """The gradient of a slice is the sum over ranks, also if the incoming gradient is not contiguous."""
    results = on_ranks(_gather_and_backward)
    rows = torch.cat([torch.arange(6.0).view(2, 3), torch.arange(6.0).view(2, 3) + 10])
    weights = torch.arange(12.0).view(3, 4).T
    for rank, (gathered, gradient) in enumerate(results):
        assert_close(gathered, rows)
        assert_close(gradient, (2 * weights + 1)[2 * rank : 2 * rank + 2])


def _gather_texts(rank: int) -> Texts:
    length = 2 + rank
    return distributed.gather(Texts(torch.zeros(1, 3), torch.ones(1, length, 3), torch.ones(1, length).bool()))


def test_captions_are_padded_to_the_longest_of_any_rank() -> None:
    """Gathered captions have the length of the longest one on all ranks."""
    for texts in on_ranks(_gather_texts):
        assert texts.mask.tolist() == [[True, True, False], [True, True, True]]
        assert texts.tokens.shape == (2, 3, 3)


def _mean(rank: int) -> torch.Tensor:
    return distributed.mean(torch.tensor(float(rank)))


def test_mean_over_ranks() -> None:
    """The mean over ranks equals the mean of their values."""
    assert on_ranks(_mean) == [torch.tensor(0.5)] * 2


def test_one_process_is_the_identity() -> None:
    """Without other ranks, the functions return their input."""
    x = torch.randn(2, 3)
    assert distributed.gather(x) is x
    assert distributed.rank() == 0
    assert distributed.world_size() == 1


def _mean_counts(rank: int) -> list[float]:
    masks = [torch.zeros(3).bool(), torch.tensor([rank == 0, False, False]), torch.tensor([True, True, rank == 0])]
    return [float(distributed.mean_count(mask, torch.float64)) for mask in masks]


def test_counts_are_averaged_also_if_there_are_fewer_than_ranks() -> None:
    """One entry on two ranks counts one half for each of them; without an entry, the divisor is not 0."""
    assert on_ranks(_mean_counts) == [[0.5, 0.5, 2.5]] * 2
    assert _mean_counts(0) == [1, 1, 3]
