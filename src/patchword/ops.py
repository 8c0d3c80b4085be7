"""Tensor operations that several objectives share. They mask with finite values and are safe for zero vectors."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from patchword.late_interaction import late_interaction

__all__ = [
    "cosine",
    "late_interaction",
    "masked_fill_min",
    "masked_mean",
    "min_max",
    "normalize",
    "quick_gelu",
    "softmax",
]


def normalize(x: Float[Tensor, "*n D"]) -> Float[Tensor, "*n D"]:
    """x / ||x|| along the last axis. A zero vector remains zero and its gradient is bounded.

    (`torch.nn.functional.normalize` multiplies the gradient of a zero vector by 1e12.)
    """
    square = x.square().sum(-1, keepdim=True)
    return x * torch.where(square <= 1e-24, 1.0, square).rsqrt()


def cosine(x: Float[Tensor, "*n X D"], y: Float[Tensor, "*n Y D"]) -> Float[Tensor, "*n X Y"]:
    """Cosine of every x with every y; 0 if either is a zero vector."""
    return normalize(x) @ normalize(y).mT


def masked_mean(x: Float[Tensor, "*n L D"], mask: Bool[Tensor, "*n L"]) -> Float[Tensor, "*n D"]:
    """Mean over the L rows where `mask` is True; 0 if it is True nowhere."""
    total = x.masked_fill(~mask[..., None], 0).sum(-2)
    return total / mask.sum(-1, keepdim=True).clamp_min(1)


def masked_fill_min(x: Float[Tensor, "*n"], mask: Bool[Tensor, "*m"]) -> Float[Tensor, "*n"]:
    """x, with the most negative finite number where `mask` (broadcast) is False.

    The number is finite because a softmax over a row of -inf is NaN, while over a row of `finfo.min` it is uniform.
    """
    return x.masked_fill(~mask, torch.finfo(x.dtype).min)


def softmax(x: Float[Tensor, "*n"], dim: int) -> Float[Tensor, "*n"]:
    """Softmax without denormal numbers.

    Most weights of unbounded similarities would be denormal, which takes 20 times as long on a CPU. The smallest weight
    is e^-40 of the largest one, which is below the rounding of float64.
    """
    return (x - x.amax(dim, keepdim=True).detach()).clamp_min(-40).softmax(dim)


def min_max(x: Float[Tensor, "*n P"]) -> Float[Tensor, "*n P"]:
    """(x - min) / (max - min) along the last axis, in [0, 1]; 1 everywhere on a constant row.

    A row counts as constant if its range is at most 1e-6 of its largest absolute value, which can be rounding. The
    result therefore does not change if a row is multiplied by a positive factor.
    """
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    spread = high - low
    magnitude = torch.maximum(low.abs(), high.abs())
    flat = spread <= (1e-6 * magnitude).clamp_min(torch.finfo(x.dtype).tiny)  # 1 / spread has to be finite
    # The denominator is guarded too, because the gradient of 0/0 in an unused branch is NaN.
    return torch.where(flat, 1.0, (x - low) / spread.masked_fill(flat, 1.0))


def quick_gelu(x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """x sigmoid(1.702 x), CLIP's approximation of the GELU."""
    return x * (1.702 * x).sigmoid()
