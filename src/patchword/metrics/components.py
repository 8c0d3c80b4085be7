"""The largest connected component of binary images, for many images at once and on any device."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def largest_box(images: Bool[Tensor, "N H W"]) -> Float[Tensor, "N 4"]:
    """The tightest box around each image's largest 4-connected component, by number of pixels.

    Of components of one size, the one that comes first row by row.

    Args:
        images: Binary images; True is foreground.

    Returns:
        Left, top, right, bottom in pixels, right and bottom exclusive; zeros where nothing is True.
    """
    image, y, left, right = _runs(images)
    label = _labels(*_neighbours(images.shape, image, y, left, right), len(image))
    area = torch.zeros_like(label).index_add(0, label, right - left)
    count = len(images)
    best = _reduce(area, image, count, "amax", 0)
    candidate = torch.where(area[label] == best[image], label, len(label))
    kept = label == _reduce(candidate, image, count, "amin", len(label))[image]
    image, y, left, right = image[kept], y[kept], left[kept], right[kept]
    far = max(images.shape)
    low = [_reduce(x, image, count, "amin", far) for x in (left, y)]
    high = [_reduce(x, image, count, "amax", 0) for x in (right, y + 1)]
    return torch.stack(low + high, -1).masked_fill(best[:, None] == 0, 0).float()


def _runs(images: Bool[Tensor, "N H W"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Image, row, first and one past the last column of every horizontal run of True, in reading order."""
    edges = torch.nn.functional.pad(images.to(torch.int8), (1, 1)).diff()
    image, y, left = (edges == 1).nonzero().unbind(-1)
    return image, y, left, (edges == -1).nonzero()[:, 2]


def _neighbours(
    shape: torch.Size, image: Int[Tensor, " R"], y: Int[Tensor, " R"], left: Int[Tensor, " R"], right: Int[Tensor, " R"]
) -> tuple[Int[Tensor, " E"], Int[Tensor, " E"]]:
    """The pairs of runs that touch: one in a row, the other in the row below, with a column in common."""
    _, height, width = shape
    line = (image * (height + 1) + y) * (width + 1)  # a number for every row of every image, one row apart
    below = line + width + 1
    first = torch.searchsorted(line + right, below + left, right=True)
    last = torch.searchsorted(line + left, below + right)
    number = (last - first).clamp_min(0)
    upper = torch.repeat_interleave(number)
    offset = torch.arange(len(upper), device=upper.device) - (number.cumsum(0) - number)[upper]
    return upper, first[upper] + offset


def _labels(x: Int[Tensor, " E"], y: Int[Tensor, " E"], runs: int) -> Int[Tensor, " R"]:
    """The smallest run of each run's component: labels flow along edges and jump to their labels' labels."""
    label = torch.arange(runs, device=x.device)
    while True:
        low = torch.minimum(label[x], label[y])
        new = label
        for target in (x, y, label[x], label[y]):
            new = new.scatter_reduce(0, target, low, "amin")
        new = new[new]
        if torch.equal(new, label):
            return label
        label = new


def _reduce(x: Int[Tensor, " R"], group: Int[Tensor, " R"], groups: int, how: str, start: int) -> Int[Tensor, " G"]:
    return x.new_full((groups,), start).scatter_reduce(0, group, x, how)
