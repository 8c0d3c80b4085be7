"""Cover an image of any shape with square windows for an encoder, and combine the scores of the windows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from patchword.data.pixels import View
from patchword.errors import UserError
from patchword.metrics.segmentation import NO_CLASS
from patchword.suites.files import Framing

Upsampling = Literal["bilinear", "nearest"]

_MEMORY = 2**24  # number of upsampled scores at a time: 64 MB


@dataclass(frozen=True)
class Canvas:
    """The positions of the windows of one image.

    Attributes:
        height: The height in pixels of the resized image that the windows cover.
        width: The width in pixels of the resized image.
        window: The height and width of a window in pixels of the resized image.
        corners: The top and left coordinates of each window.
    """

    height: int
    width: int
    window: tuple[int, int]
    corners: list[tuple[int, int]]


def one_view(width: int, height: int, framing: Framing) -> tuple[Canvas, list[View]]:
    """One view: the complete image, stretched to a square. The canvas has the size of the image."""
    view = View((0.0, 0.0, float(width), float(height)), framing.size, framing.preprocessing.interpolation)
    return Canvas(height, width, (height, width), [(0, 0)]), [view]


def sliding_windows(
    width: int, height: int, framing: Framing, short_side: int, stride: int
) -> tuple[Canvas, list[View]]:
    """Windows at a distance of `stride` pixels that cover the image, resized to the shorter side `short_side`.

    The last window of a row or column is moved back to the edge (as in MMSegmentation's `slide` mode).

    Args:
        width: The width of the image.
        height: The height of the image.
        framing: The size of a window and the interpolation mode.
        short_side: The length of the shorter side in pixels, at least the size of a window.
        stride: The distance between neighboring windows in pixels.

    Raises:
        UserError: If the shorter side is smaller than a window, or if the windows would leave gaps.
    """
    size = framing.size
    if short_side < size:
        raise UserError(
            f"data.labeling.short_side is {short_side}, but the encoder needs windows of {size} pixels: set it to "
            f"{size} or more, or to null for one view of the complete image"
        )
    if not 1 <= stride <= size:
        raise UserError(
            f"data.labeling.stride must be between 1 and {size}, the size of a window in pixels, not {stride}"
        )
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
    """Upsample the scores of patches to the pixels of the canvas, averaged over overlapping windows.

    Args:
        scores: The scores of each window's patches, row by row.
        grid: Rows and columns of the patches.
        canvas: The positions of the windows.
        how: `bilinear` interpolation, or the score of the `nearest` patch.
    """
    maps = scores.mT.unflatten(-1, grid)
    if len(maps) == 1:  # one window is the complete canvas
        return resize(maps[0], canvas.window, how)
    total = scores.new_zeros(scores.shape[2], canvas.height, canvas.width)
    times = scores.new_zeros(canvas.height, canvas.width)
    height, width = canvas.window
    for of_window, (top, left) in zip(maps, canvas.corners, strict=True):
        place = (slice(top, top + height), slice(left, left + width))
        total[:, *place] += resize(of_window, canvas.window, how)
        times[place] += 1
    return total / times


def resize(maps: Float[Tensor, "c h w"], size: tuple[int, int], how: Upsampling) -> Float[Tensor, "c H W"]:
    """Resize maps; pixel centers are aligned, not corners."""
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
    refine: Callable[[Float[Tensor, "c H W2"]], Float[Tensor, "c H W2"]] | None = None,
) -> tuple[UInt8[Tensor, "H W2"], Float[Tensor, "H W2"]]:
    """The class with the highest score at each pixel (`NO_CLASS` for a tie or NaN), and the score of this class.

    A few classes are upsampled at a time, so memory does not grow with the number of classes.

    Args:
        scores: The scores of each window's patches for each class.
        grid: Rows and columns of the patches.
        canvas: The positions of the windows.
        size: The height and width of the result.
        how: How scores are upsampled from patches to the canvas and from the canvas to `size`.
        temperature: Return the softmax over classes of scores / temperature; None returns the score itself.
        refine: Function that changes the scores of pixels before they are compared; None leaves them as they are.
    """
    best = scores.new_full(size, -torch.inf)
    label = torch.full(size, NO_CLASS, dtype=torch.uint8, device=scores.device)
    tied = torch.zeros(size, dtype=torch.bool, device=scores.device)
    total = scores.new_full(size, -torch.inf)
    step = max(1, _MEMORY // (size[0] * size[1] + canvas.height * canvas.width))
    for first in range(0, scores.shape[2], step):
        pixels = resize(stitch(scores[..., first : first + step], grid, canvas, how), size, how)
        pixels = pixels if refine is None else refine(pixels)
        top, which = pixels.max(0)
        tied = torch.where(top > best, (pixels == top).sum(0, dtype=torch.int32) > 1, tied | (top == best))
        tied |= top.isnan()
        label = torch.where(top > best, (which + first).to(torch.uint8), label)
        best = torch.maximum(best, top)
        if temperature is not None:
            total = torch.logaddexp(total, (pixels / temperature).logsumexp(0))
    label[tied | best.isnan()] = NO_CLASS
    return label, best if temperature is None else (best / temperature - total).exp()
