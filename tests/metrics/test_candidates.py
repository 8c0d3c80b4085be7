"""Tests the choice of a map among candidate boxes against a loop over pixels, and what counts against it."""

from __future__ import annotations

import pytest
import torch

from patchword.metrics.candidates import candidate_hits

GRID, SIZE = (3, 4), (30, 40)  # a patch is 10 pixels wide and high


def test_equals_a_loop_over_pixels() -> None:
    """Candidates end within patches; the mean over a box is that over its pixels, and any box of a phrase counts."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(2, 40, 12, generator=generator)
    corner = torch.randint(0, 20, (60, 2), generator=generator).float()
    boxes = torch.cat([corner, corner + torch.randint(3, 10, (60, 2), generator=generator)], 1)
    phrase = torch.arange(60) % 40  # the first 20 phrases have two boxes
    candidates = []
    for n in range(40):
        near = boxes[phrase == n][:1] + torch.randint(-2, 2, (1, 4), generator=generator)
        other = boxes[torch.randperm(60, generator=generator)[: n % 5]]
        candidates.append(torch.cat([other, near.clamp(0, 30)]))
    found = candidate_hits(maps, GRID, SIZE, boxes, phrase, candidates)
    for n, own in enumerate(candidates):
        right = []
        for a in own.long().tolist():
            pixels = {(x, y) for x in range(a[0], a[2]) for y in range(a[1], a[3])}
            overlaps = []
            for b in boxes[phrase == n].long().tolist():
                others = {(x, y) for x in range(b[0], b[2]) for y in range(b[1], b[3])}
                overlaps.append(len(pixels & others) / len(pixels | others))
            right.append(max(overlaps) >= 0.5)
        assert found[n, 0] == pytest.approx(sum(right) / len(right))
        for source in range(2):
            scores = []
            for left, top, end, bottom in own.long().tolist():
                values = [
                    float(maps[source, n, 4 * (y // 10) + x // 10])
                    for x in range(left, end)
                    for y in range(top, bottom)
                ]
                scores.append(sum(values) / len(values))
            assert found[n, 1 + source] == right[scores.index(max(scores))]
    assert 0.2 < found[:, 1:].mean() < 0.8


def test_what_counts_against_the_map() -> None:
    """A tie with a wrong candidate, a NaN, no candidate, and no right candidate."""
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    other = box + 20
    one = torch.zeros(1, dtype=torch.long)

    def hit(values: list[float], candidates: torch.Tensor) -> list[float]:
        maps = torch.tensor(values)[None, None]
        return candidate_hits(maps, GRID, SIZE, box, one, [candidates])[0].tolist()

    both = torch.cat([box, other])
    assert hit([1.0] + [0.0] * 11, both) == [0.5, 1]
    assert hit([1.0] * 12, both) == [0.5, 0]
    assert hit([1.0] * 12, box) == [1, 1]
    assert hit([torch.nan] * 12, box) == [1, 0]
    assert hit([1.0] + [0.0] * 11, other) == [0, 0]
    assert hit([1.0] + [0.0] * 11, box[:0]) == [0, 0]
