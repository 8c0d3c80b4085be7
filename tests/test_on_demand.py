"""Tests of `on_demand`: a loss that reads no patches or tokens pays for no copy; the order of readers is irrelevant."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from patchword import Texts, on_demand, ops
from patchword.objectives import CLIP
from tests.objectives.variants import pairs


def test_a_global_loss_prepares_neither_patches_nor_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """CLIP's loss reads only global embeddings, so nothing is converted and no padding is cleared."""

    def refuse(*_: object) -> None:
        raise AssertionError("patches or tokens were prepared")

    monkeypatch.setattr(on_demand, "without_padding", refuse)
    CLIP()(*pairs())
    with pytest.raises(AssertionError, match="were prepared"):
        CLIP().align(*pairs())


def test_a_first_reader_without_gradients_does_not_stop_later_gradients() -> None:
    """FILIP's token dropping reads tokens without gradients before its loss reads them."""
    _, texts = pairs()
    found = on_demand.on_demand(texts)
    with torch.no_grad():
        assert found.tokens.requires_grad
    found.tokens.sum().backward()
    assert_close(texts.tokens.grad, texts.mask[..., None].expand_as(texts.tokens).float())


def test_prepared_data_is_not_prepared_again_unless_it_is_replaced() -> None:
    """An inner call gets the same tensor. With another mask, the padding is another one and is cleared."""
    _, texts = pairs()
    once = on_demand.on_demand(texts)
    assert on_demand.on_demand(once) is once
    fewer = replace(once, mask=torch.zeros_like(texts.mask))
    assert isinstance(fewer, Texts)
    assert not on_demand.on_demand(fewer).tokens.any()
    with pytest.raises(AttributeError, match="has no attribute 'words'"):
        _ = once.words


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_zeros_replace_whatever_the_mask_excludes(dtype: torch.dtype) -> None:
    """Values and gradients are those of `masked_fill`, also for NaN and infinity; a NaN that is not masked remains."""
    x = torch.randn(3, 4, 5).to(dtype)
    mask = torch.tensor([[True, False, True, True], [False] * 4, [True] * 4])[..., None]
    x[0, 1], x[1, 0, 0], x[2, 0, 0] = torch.nan, torch.inf, torch.nan
    x.requires_grad_()
    assert_close(ops.masked_fill_zero(x, mask), x.masked_fill(~mask, 0), equal_nan=True)
    incoming = torch.randn(5, 4, 3).to(dtype).permute(2, 1, 0).masked_fill(~mask, torch.nan)
    (gradient,) = torch.autograd.grad(ops.masked_fill_zero(x, mask), x, incoming)
    assert_close(gradient, incoming.masked_fill(~mask, 0))
