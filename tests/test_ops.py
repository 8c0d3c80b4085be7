"""Tests of edge cases of the shared tensor operations. The tests of objectives cover the rest."""

import pytest
import torch
from torch.testing import assert_close

from patchword import Images, ops


def test_normalize_equals_torch_and_keeps_zero() -> None:
    """Vectors are divided by their norm, and a zero vector stays zero."""
    x = torch.randn(4, 5, dtype=torch.float64)
    assert_close(ops.normalize(x), torch.nn.functional.normalize(x, dim=-1))
    zero = torch.zeros(1, 5, requires_grad=True)
    ops.normalize(zero).sum().backward()
    assert (ops.normalize(zero) == 0).all()
    assert zero.grad.abs().max() <= 1, "torch's own gradient here is 1e12"


def test_masked_mean_counts_only_real_rows() -> None:
    """Masked rows do not count, and the mean of no rows is zero."""
    x = torch.tensor([[1.0, 2.0, float("nan")], [5.0, float("inf"), 7.0]])[..., None]
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert_close(ops.masked_mean(x, mask), torch.tensor([[1.5], [0.0]]))


def test_min_max_spans_zero_to_one_and_treats_a_constant_row_as_all_best() -> None:
    """Rows are scaled to [0, 1], and a constant row becomes 1."""
    x = torch.tensor([[3.0, 1.0, 2.0], [4.0, 4.0, 4.0]], requires_grad=True)
    y = ops.min_max(x)
    assert_close(y, torch.tensor([[1.0, 0.0, 0.5], [1.0, 1.0, 1.0]]))
    y.square().sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("factor", [1e-30, 3e-4, 1.0, 1e6])
def test_min_max_does_not_depend_on_the_unit(factor: float) -> None:
    """Rows that vary by 40 % are not constant, for every factor. Rows that vary by rounding are constant."""
    x = 0.004 * torch.tensor([[1.0, 0.6, 0.8], [-1.0, -0.6, -0.8], [1.0, 1.0 + 2e-7, 1.0], [0.0, 0.0, 0.0]])
    expected = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    assert_close(ops.min_max(factor * x), expected)


def test_masked_softmax_rows_without_any_member_are_finite() -> None:
    """A completely masked row does not give NaN."""
    row = ops.masked_fill_min(torch.randn(1, 3), torch.zeros(1, 3, dtype=torch.bool)).softmax(-1)
    assert_close(row, torch.full((1, 3), 1 / 3))


def test_padding_takes_no_part() -> None:
    """Padding of any value has the weight 0 in a softmax and in min-max, also if it holds the extremes."""
    x = torch.tensor([[[3.0, 9.0, 1.0, -9.0]], [[2.0, 2.0, 5.0, 7.0]]], requires_grad=True)
    mask = torch.tensor([[True, False, True, False], [True, True, False, False]])
    assert_close(ops.min_max(x, mask), torch.tensor([[[1.0, 0.0, 0.0, 0.0]], [[1.0, 1.0, 0.0, 0.0]]]))
    expected = torch.zeros(2, 1, 4)
    expected[0, 0, [0, 2]], expected[1, 0, :2] = torch.tensor([3.0, 1.0]).softmax(0), torch.tensor([0.5, 0.5])
    assert_close(ops.softmax(x, -1, mask), expected)
    assert_close(ops.softmax(x.mT, 1, mask).mT, expected)
    assert ops.without_padding(x, None, -1) is x
    (gradient,) = torch.autograd.grad((ops.min_max(x, mask) * torch.randn(4)).sum(), x)
    assert (gradient.squeeze(1)[~mask] == 0).all()


def test_a_grid_that_does_not_hold_the_patches_is_refused() -> None:
    """The grid must have as many cells as there are patches."""
    with pytest.raises(ValueError, match=r"grid of 2 x 2 .* 6 patches"):
        Images(torch.zeros(1, 3), torch.zeros(1, 6, 3), (2, 2))


def test_softmax_holds_no_denormal_number_and_equals_torchs() -> None:
    """With similarities of several hundred, torch's weights are denormal. Ours are not, and differ only by rounding."""
    x = torch.linspace(-300, 0, 400, requires_grad=True)
    found, expected = ops.softmax(x, 0), x.softmax(0)
    assert (expected < torch.finfo(torch.float32).tiny).any()
    assert (found > torch.finfo(torch.float32).tiny).all()
    assert_close(found, expected, atol=1e-17, rtol=1e-6)
    weights = torch.arange(400.0)
    gradients = [torch.autograd.grad((y * weights).sum(), x)[0] for y in (found, expected)]
    assert_close(*gradients, atol=1e-8, rtol=1e-5)
