"""Tests the pointing game and box recalls against loops in numpy and scipy, IoU against torchvision, and ties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn.functional import interpolate
from torchvision.ops import box_iou as peer_iou

from patchword.metrics import boxes as module
from patchword.metrics.boxes import box_hits, covered
from patchword.metrics.map_scores import box_iou

SIZE, GRID = (24, 32), (6, 8)


def example(phrases: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Smooth maps, and one to three boxes per phrase, some of them around the map's peak."""
    generator = torch.Generator().manual_seed(0)
    maps = interpolate(torch.randn(phrases, 1, 3, 4, generator=generator), GRID, mode="bicubic").flatten(1)
    owner = torch.arange(phrases).repeat_interleave(torch.arange(phrases) % 3 + 1)
    low = torch.rand(len(owner), 2, generator=generator) * torch.tensor([12.0, 8])
    high = low + 8 + torch.rand(len(owner), 2, generator=generator) * torch.tensor([12.0, 8])
    return maps, torch.cat([low, high], 1), owner


def loop(maps: torch.Tensor, boxes: torch.Tensor, owner: torch.Tensor) -> np.ndarray:
    """The metrics equal a loop over phrases."""
    rows = []
    for n, values in enumerate(maps):
        grid = values.double().reshape(1, 1, *GRID)
        pixels = interpolate(grid, SIZE, mode="bilinear", align_corners=False)[0, 0].float().numpy()
        own = boxes[owner == n].numpy()
        peaks = np.argwhere(pixels == pixels.max())
        pointed = np.mean([any(a <= x + 0.5 < c and b <= y + 0.5 < d for a, b, c, d in own) for y, x in peaks])
        parts, number = ndimage.label(pixels >= (pixels.min() + pixels.max()) / 2)
        largest = 1 + np.argmax([(parts == i + 1).sum() for i in range(number)])
        ys, xs = np.nonzero(parts == largest)
        predicted = torch.tensor([[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]]).float()
        merged = np.concatenate([own[:, :2].min(0), own[:, 2:].max(0)])[None]
        overlap = [float(peer_iou(predicted, torch.from_numpy(to)).max()) for to in (own, merged)]
        rows.append([pointed, *(value >= 0.5 for value in overlap)])
    return np.array(rows, dtype=float)


@pytest.mark.parametrize("block", [1, 2**21])
def test_equal_to_a_loop(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks and one large block give the same result."""
    monkeypatch.setattr(module, "_BLOCK", block)
    maps, boxes, owner = example()
    found = box_hits(maps, GRID, SIZE, boxes, owner)
    expected = loop(maps, boxes, owner)
    assert (expected.mean(0) > 0).all()
    assert (expected.mean(0) < 1).all()
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_any_is_not_merged() -> None:
    """For two boxes in opposite corners, a map on one box hits ANY, and a map on the complete image hits MERGED."""
    boxes = torch.tensor([[0.0, 0, 8, 8], [24, 16, 32, 24]]).repeat(2, 1)
    corner = torch.zeros(GRID)
    corner[:2, :2] = 1
    maps = torch.stack([corner.flatten(), torch.ones(48)])
    found = box_hits(maps, GRID, SIZE, boxes, torch.tensor([0, 0, 1, 1]))
    assert found[0].tolist() == [1, 1, 0]
    share = 2 * 64 / (24 * 32)
    assert found[1].tolist() == pytest.approx([share, 0, 1])  # a constant map points anywhere
    assert covered(boxes, torch.tensor([0, 0, 1, 1]), 2, SIZE).tolist() == pytest.approx([share, share])


def test_maps_that_are_not_finite_hit_nothing() -> None:
    """It does not even hit a box that covers the complete image."""
    maps = torch.zeros(2, 48)
    maps[0, 3] = torch.nan
    maps[1, 3] = torch.inf
    boxes = torch.tensor([[0.0, 0, 32, 24]]).repeat(2, 1)
    assert box_hits(maps, GRID, SIZE, boxes, torch.tensor([0, 1])).abs().sum() == 0


def test_no_phrases() -> None:
    """The metrics accept a batch of images without phrases."""
    nothing = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
    assert box_hits(torch.zeros(0, 48), GRID, SIZE, *nothing).shape == (0, 3)
    assert covered(*nothing, 0, SIZE).shape == (0,)


def test_iou_is_torchvisions() -> None:
    """The pairwise IoU is the diagonal of torchvision's matrix."""
    _, boxes, _ = example()
    other = boxes.roll(1, 0) + torch.tensor([1.0, 2, 3, 1])
    torch.testing.assert_close(box_iou(boxes, other), peer_iou(boxes, other).diagonal())
