"""Tensor operations that several objectives share. They mask with finite values and are safe for zero vectors."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention, silu

from patchword.late_interaction import late_interaction
from patchword.masking import masked_fill_zero

__all__ = [
    "attend",
    "cosine",
    "late_interaction",
    "masked_fill_min",
    "masked_fill_zero",
    "masked_mean",
    "min_max",
    "normalize",
    "products",
    "quick_gelu",
    "softmax",
    "with_mask",
    "without_padding",
]


def normalize(x: Float[Tensor, "*n D"]) -> Float[Tensor, "*n D"]:
    """x / ||x|| along the last axis. A zero vector remains zero and its gradient is bounded.

    (`torch.nn.functional.normalize` multiplies the gradient of a zero vector by 1e12.)
    """
    return _Normalize.apply(x)


class _Normalize(torch.autograd.Function):
    """One node of the graph instead of five: on a CPU it is faster, and it keeps only the result and the norms."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        factor = norm.masked_fill(norm <= 1e-12, 1).reciprocal()
        unit = x * factor
        ctx.save_for_backward(unit, factor)
        return unit

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        unit, factor = ctx.saved_tensors
        along = (unit * gradient).sum(-1, keepdim=True)
        return torch.addcmul(gradient, unit, along, value=-1) * factor


def cosine(x: Float[Tensor, "*n X D"], y: Float[Tensor, "*n Y D"]) -> Float[Tensor, "*n X Y"]:
    """Cosine of every x with every y; 0 if either is a zero vector."""
    return products(normalize(x), normalize(y))


def products(x: Float[Tensor, "*n X D"], y: Float[Tensor, "*n Y D"]) -> Float[Tensor, "*n X Y"]:
    """Product of every x with every y."""
    return x @ y.mT


def masked_mean(x: Float[Tensor, "*n L D"], mask: Bool[Tensor, "*n L"]) -> Float[Tensor, "*n D"]:
    """Mean over the L rows where `mask` is True; 0 if it is True nowhere."""
    total = masked_fill_zero(x, mask[..., None]).sum(-2)
    return total / mask.sum(-1, keepdim=True).clamp_min(1)


def masked_fill_min(x: Float[Tensor, "*n"], mask: Bool[Tensor, "*m"]) -> Float[Tensor, "*n"]:
    """x, with the most negative finite number where `mask` (broadcast) is False.

    The number is finite because a softmax over a row of -inf is NaN, while over a row of `finfo.min` it is uniform.
    """
    return x.masked_fill(~mask, torch.finfo(x.dtype).min)


def without_padding(
    x: Shaped[Tensor, "I ..."], mask: Bool[Tensor, "I P"] | None, dim: int, value: float | bool | None = None
) -> Shaped[Tensor, "I ..."]:
    """x with `value` at the padding of each x[i]; x itself if there is no mask.

    Args:
        x: Any values, of which dimension `dim` consists of the P patches and, after them, entries that are no padding.
        mask: True for patches, False for padding; None if all are patches.
        dim: The dimension of the patches.
        value: The value of padding; None for the most negative finite number, whose weight in a softmax is 0.
    """
    if mask is None:
        return x
    shape = [len(x), *[1] * (x.ndim - 1)]
    shape[dim] = x.shape[dim]
    real = pad(mask, (0, x.shape[dim] - mask.shape[1]), value=True).view(shape)
    if value == 0.0 and x.is_floating_point():
        return masked_fill_zero(x, real)
    return x.masked_fill(~real, torch.finfo(x.dtype).min if value is None else value)


def softmax(x: Float[Tensor, "*n"], dim: int, mask: Bool[Tensor, "I P"] | None = None) -> Float[Tensor, "*n"]:
    """Softmax without denormal numbers; for `mask`, see `without_padding`.

    Most weights of unbounded similarities would be denormal, which takes 20 times as long on a CPU. The smallest weight
    is e^-40 of the largest one, which is below the rounding of float64.
    """
    x = without_padding(x, mask, dim)
    return without_padding((x - x.amax(dim, keepdim=True).detach()).clamp_min(-40), mask, dim).softmax(dim)


def min_max(x: Float[Tensor, "*n P"], mask: Bool[Tensor, "I P"] | None = None) -> Float[Tensor, "*n P"]:
    """(x - min) / (max - min) along the last axis, in [0, 1]; 1 everywhere on a constant row, and 0 for padding.

    A row counts as constant if its range is at most 1e-6 of its largest absolute value, which can be rounding. The
    result therefore does not change if a row is multiplied by a positive factor. For `mask`, see `without_padding`.
    """
    low = without_padding(x, mask, -1, torch.finfo(x.dtype).max).amin(-1, keepdim=True)
    high = without_padding(x, mask, -1).amax(-1, keepdim=True)
    spread = high - low
    magnitude = torch.maximum(low.abs(), high.abs())
    flat = spread <= (1e-6 * magnitude).clamp_min(torch.finfo(x.dtype).tiny)  # 1 / spread has to be finite
    # The denominator is guarded too, because the gradient of 0/0 in an unused branch is NaN.
    return without_padding(torch.where(flat, 1.0, (x - low) / spread.masked_fill(flat, 1.0)), mask, -1, 0.0)


def with_mask(
    keys_and_values: Float[Tensor, "I 2 H K d"], mask: Bool[Tensor, "I P"] | None
) -> Float[Tensor, "I N H K d"]:
    """Keys and values for `attend`, N = 2; with a mask, N = 3, and the third part is what is added to the logits.

    Losses over all pairs cut one tensor into tiles, so that the mask has to be a part of it.
    """
    if mask is None:
        return keys_and_values
    bias = without_padding(torch.zeros_like(keys_and_values[:, :1]), mask, -2)
    return torch.cat([keys_and_values, bias], 1)


def attend(queries: Float[Tensor, "I H T d"], keys_and_values: Float[Tensor, "I N H K d"]) -> Float[Tensor, "I H T d"]:
    """The values of each image, averaged with the weights of a softmax over keys; see `with_mask`."""
    keys, values, *bias = keys_and_values.unbind(1)
    return scaled_dot_product_attention(queries, keys, values, attn_mask=bias[0][..., :1].mT if bias else None)


def quick_gelu(x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """x sigmoid(1.702 x), CLIP's approximation of the GELU."""
    return silu(1.702 * x) / 1.702
