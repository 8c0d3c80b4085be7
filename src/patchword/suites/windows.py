"""Cover an image of any shape with the square windows that an encoder takes, and join what it says of each."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from patchword.data.pixels import View
from patchword.errors import InputError
from patchword.metrics.segmentation import NO_CLASS
from patchword.suites.files import Framing

Upsampling = Literal["bilinear", "nearest"]

_MEMORY = 2**24  # numbers of upsampled scores at a time: 64 MB


@dataclass(frozen=True)
class Canvas:
    """Where the windows of one image lie.

    Attributes:
        height: Of the resized image that the windows cover, in pixels.
        width: Likewise.
        window: Height and width of a window in these pixels.
        corners: Top and left of each window.
    """

    height: int
    width: int
    window: tuple[int, int]
    corners: list[tuple[int, int]]


def one_view(width: int, height: int, framing: Framing) -> tuple[Canvas, list[View]]:
    """The whole image, whatever its shape, stretched to one square; its canvas has the image's own pixels."""
    view = View((0.0, 0.0, float(width), float(height)), framing.size, framing.preprocessing.interpolation)
    return Canvas(height, width, (height, width), [(0, 0)]), [view]


def sliding_windows(
    width: int, height: int, framing: Framing, short_side: int, stride: int
) -> tuple[Canvas, list[View]]:
    """Windows of the image resized so that its shorter side has `short_side` pixels, `stride` pixels apart.

    The last window of a row or column is moved back to the edge (as in MMSegmentation's `slide` mode).

    Args:
        width: Of the image.
        height: Of the image.
        framing: Gives the window's size and how pixels are interpolated.
        short_side: In pixels, the window's size or more.
        stride: In pixels.

    Raises:
        InputError: If the shorter side is smaller than a window, or the windows leave gaps.
    """
    size = framing.size
    if short_side < size:
        raise InputError(
            f"data.labelling.short_side is {short_side}, and the encoder takes windows of {size} pixels: give {size} "
            "or more, or null for one view of the whole image"
        )
    if not 1 <= stride <= size:
        raise InputError(f"data.labelling.stride must be from 1 to the window's {size} pixels, not {stride}")
    scale = short_side / min(width, height)
    columns, rows = round(width * scale), round(height * scale)
    corners = list(itertools.product(_starts(rows, size, stride), _starts(columns, size, stride)))
    x, y = width / columns, height / rows
    views = [
        View(
            (left * x, top * y, min((left + size) * x, width), min((top + size) * y, height)),
            size,
            framing.preprocessing.interpolation,
        )
        for top, left in corners
    ]
    return Canvas(rows, columns, (size, size), corners), views


def _starts(length: int, size: int, stride: int) -> list[int]:
    number = math.ceil((length - size) / stride) + 1
    return [min(i * stride, length - size) for i in range(number)]


def stitch(
    scores: Float[Tensor, "W P c"], grid: tuple[int, int], canvas: Canvas, how: Upsampling
) -> Float[Tensor, "c H W2"]:
    """The scores of patches as those of the canvas's pixels: upsampled, and averaged where windows overlap.

    Args:
        scores: Of each window's patches, row by row.
        grid: Rows and columns of the patches.
        canvas: Where the windows lie.
        how: `bilinear`, or the score of the `nearest` patch.
    """
    maps = scores.mT.unflatten(-1, grid)
    total = scores.new_zeros(scores.shape[2], canvas.height, canvas.width)
    times = scores.new_zeros(canvas.height, canvas.width)
    height, width = canvas.window
    for of_window, (top, left) in zip(maps, canvas.corners, strict=True):
        place = (slice(top, top + height), slice(left, left + width))
        total[:, *place] += resize(of_window, canvas.window, how)
        times[place] += 1
    return total / times


def resize(maps: Float[Tensor, "c h w"], size: tuple[int, int], how: Upsampling) -> Float[Tensor, "c H W"]:
    """Maps at another resolution, pixel centres to pixel centres."""
    if maps.shape[1:] == size:
        return maps
    if how == "nearest":
        return interpolate(maps[None], size, mode="nearest-exact")[0]
    return interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]


def label_pixels(
    scores: Float[Tensor, "W P C"],
    grid: tuple[int, int],
    canvas: Canvas,
    size: tuple[int, int],
    how: Upsampling = "bilinear",
    temperature: float | None = None,
) -> tuple[UInt8[Tensor, "H W2"], Float[Tensor, "H W2"]]:
    """The class with the highest score at each pixel, `NO_CLASS` at a tie or NaN, and that score.

    Classes are upsampled a few at a time, so that memory does not grow with their number.

    Args:
        scores: Of each window's patches with C classes.
        grid: Rows and columns of the patches.
        canvas: Where the windows lie.
        size: Height and width of the result.
        how: How scores are upsampled, from patches to the canvas and from there to `size`.
        temperature: Return the softmax over classes of scores / temperature; null for the score itself.
    """
    best = scores.new_full(size, -torch.inf)
    label = torch.full(size, NO_CLASS, dtype=torch.uint8, device=scores.device)
    tied = torch.zeros(size, dtype=torch.bool, device=scores.device)
    total = scores.new_full(size, -torch.inf)
    step = max(1, _MEMORY // (size[0] * size[1] + canvas.height * canvas.width))
    for first in range(0, scores.shape[2], step):
        pixels = resize(stitch(scores[..., first : first + step], grid, canvas, how), size, how)
        top, which = pixels.max(0)
        tied = torch.where(top > best, (pixels == top).sum(0) > 1, tied | (top == best))
        tied |= top.isnan()
        label = torch.where(top > best, (which + first).to(torch.uint8), label)
        best = torch.maximum(best, top)
        if temperature is not None:
            total = torch.logaddexp(total, (pixels / temperature).logsumexp(0))
    label[tied | best.isnan()] = NO_CLASS
    return label, best if temperature is None else (best / temperature - total).exp()
