"""Zeros for padding, whatever it holds: a bitwise and, because 0 * NaN is NaN and `masked_fill` is slow on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def masked_fill_zero(x: Float[Tensor, "*n"], mask: Bool[Tensor, "*m"]) -> Float[Tensor, "*n"]:
    """x, with 0 where `mask` (broadcast) is False, also in place of NaN; the gradient is 0 there as well.

    It equals `x.masked_fill(~mask, 0)`, which is slower on a CPU.
    """
    return _MaskedFillZero.apply(x, mask)


class _MaskedFillZero(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        integer = BITS[x.element_size()]
        return (x.view(integer) & -mask.to(integer)).view(x.dtype)  # -1 has all bits

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return masked_fill_zero(gradient, *ctx.saved_tensors), None
