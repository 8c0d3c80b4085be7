"""Remove patches from an image: hide them behind the image's mean color, or blur them."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from patchword.errors import UserError

Fill = Literal["mean", "blur"]


def without_patches(
    pixels: UInt8[Tensor, "I 3 H W"], kept: Bool[Tensor, "I P"], grid: tuple[int, int], fill: Fill = "mean"
) -> UInt8[Tensor, "I 3 H W"]:
    """The images in which only the patches of `kept` are seen.

    Args:
        pixels: The images.
        kept: True for the patches that remain.
        grid: Rows and columns of the patches.
        fill: The pixels of removed patches: the mean color of the image (`mean`), or the image blurred by a Gaussian
            whose standard deviation is half the side of a patch (`blur`).
    """
    size = (pixels.shape[2], pixels.shape[3])
    seen = interpolate(kept.float().unflatten(1, grid)[:, None], size, mode="nearest") > 0.5
    return torch.where(seen, pixels, background(pixels, grid, fill))


def background(
    pixels: UInt8[Tensor, "I 3 H W"], grid: tuple[int, int], fill: Fill = "mean"
) -> UInt8[Tensor, "I 3 H W"]:
    """The images of which nothing is seen; see `without_patches`.

    Raises:
        UserError: If `fill` is unknown.
    """
    if fill == "mean":
        return pixels.float().mean((2, 3), keepdim=True).round().to(torch.uint8).expand_as(pixels)
    if fill != "blur":
        raise UserError(f"fill must be one of {', '.join(get_args(Fill))}, not {fill!r}")
    rows, columns = (
        _smoothing(length, length / patches / 2, pixels.device)
        for length, patches in zip(pixels.shape[2:], grid, strict=True)
    )
    return (rows @ pixels.float() @ columns.T).round().to(torch.uint8)


def _smoothing(length: int, deviation: float, device: torch.device) -> Float[Tensor, "n n"]:
    """The matrix of a Gaussian filter along one axis. Weights outside the image are left out."""
    place = torch.arange(length, device=device).float()
    return (-((place[:, None] - place) ** 2) / (2 * deviation**2)).softmax(-1)
