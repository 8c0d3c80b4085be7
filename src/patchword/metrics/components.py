"""The connected components of binary images, for many images at once and on any device."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from patchword.metrics.nonzero import nonzero


def largest_box(images: Bool[Tensor, "N H W"]) -> Float[Tensor, "N 4"]:
    """The tightest box around each image's largest 4-connected component, by number of pixels.

    If several components have the same size, the first one in reading order counts.

    Args:
        images: True for foreground pixels.

    Returns:
        Left, top, right, bottom in pixels, right and bottom exclusive; zeros for an image without foreground.
    """
    image, y, left, right = _runs(images)
    label = _labels(*_neighbors(images.shape, image, y, left, right), len(image))
    area = torch.zeros_like(label).index_add(0, label, right - left)[label]
    count = len(images)
    best = _reduce(area, image, count, "amax", 0)
    candidate = torch.where(area == best[image], label, len(label))
    kept = label == _reduce(candidate, image, count, "amin", len(label))[image]
    boxes = _around(image[kept], y[kept], left[kept], right[kept], count, max(images.shape))
    return boxes.masked_fill(best[:, None] == 0, 0)


def component_boxes(images: Bool[Tensor, "N H W"]) -> tuple[Float[Tensor, "K 4"], Int[Tensor, " K"]]:
    """The tightest box around each 4-connected component of each image.

    Args:
        images: True for foreground pixels.

    Returns:
        Left, top, right, bottom in pixels, right and bottom exclusive, in the reading order of the components' first
        pixels, and the image of each box. An image without foreground has no box.
    """
    image, y, left, right = _runs(images)
    label = _labels(*_neighbors(images.shape, image, y, left, right), len(image))
    count = int(label.max()) + 1 if len(label) else 0
    owner = _reduce(image, label, count, "amin", len(images))
    return _around(label, y, left, right, count, max(images.shape)), owner


def _around(
    group: Int[Tensor, " R"],
    y: Int[Tensor, " R"],
    left: Int[Tensor, " R"],
    right: Int[Tensor, " R"],
    groups: int,
    far: int,
) -> Float[Tensor, "G 4"]:
    """The tightest box around the runs of each group; `far` is a number that no coordinate exceeds."""
    low = [_reduce(x, group, groups, "amin", far) for x in (left, y)]
    high = [_reduce(x, group, groups, "amax", 0) for x in (right, y + 1)]
    return torch.stack(low + high, -1).float()


def _runs(images: Bool[Tensor, "N H W"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The image, the row, the first column and the column after the last of every run of True, in reading order."""
    _, height, width = images.shape
    lines = torch.nn.functional.pad(images.reshape(-1, width), (1, 0))  # a gap before each row separates runs
    flat = torch.nn.functional.pad(lines.flatten(), (0, 1))
    left, right = nonzero(flat[1:] != flat[:-1]).view(-1, 2).unbind(-1)
    line = left // (width + 1)
    return line // height, line % height, left % (width + 1), right - line * (width + 1)


def _neighbors(
    shape: torch.Size, image: Int[Tensor, " R"], y: Int[Tensor, " R"], left: Int[Tensor, " R"], right: Int[Tensor, " R"]
) -> tuple[Int[Tensor, " E"], Int[Tensor, " E"]]:
    """The pairs of runs that touch: two runs in adjacent rows of an image that share a column."""
    _, height, width = shape
    # The offset of every row; rows of different images are not adjacent.
    line = (image * (height + 1) + y) * (width + 1)
    below = line + width + 1
    first = _searchsorted(line + right, below + left, "right")
    last = _searchsorted(line + left, below + right, "left")
    number = (last - first).clamp_min(0)
    upper = torch.repeat_interleave(number)
    offset = torch.arange(len(upper), device=upper.device) - (number.cumsum(0) - number)[upper]
    return upper, first[upper] + offset


def _searchsorted(
    ordered: Int[Tensor, " R"], values: Int[Tensor, " R"], side: Literal["left", "right"]
) -> Int[Tensor, " R"]:
    """`torch.searchsorted` of ascending values, which numpy finds several times faster on a CPU."""
    if ordered.device.type == "cpu":
        return torch.from_numpy(np.searchsorted(ordered.numpy(), values.numpy(), side))
    return torch.searchsorted(ordered, values, side=side)


def _labels(x: Int[Tensor, " E"], y: Int[Tensor, " E"], runs: int) -> Int[Tensor, " R"]:
    """The component of each run, from pairs in the order of x. Components are in the order of their first runs."""
    starts = np.searchsorted(x.cpu().numpy(), np.arange(runs + 1))
    graph = csr_array((np.ones(len(x)), y.cpu().numpy(), starts), shape=(runs, runs))
    return torch.from_numpy(connected_components(graph, directed=False)[1]).to(x)


def _reduce(x: Int[Tensor, " R"], group: Int[Tensor, " R"], groups: int, how: str, start: int) -> Int[Tensor, " G"]:
    return x.new_full((groups,), start).scatter_reduce(0, group, x, how)
