"""Tests the accuracy of swaps against a loop over pairs of phrases."""

import pytest
import torch

from patchword.maps.phrases import center_map, upsample
from patchword.metrics import Grounding
from patchword.metrics.map_scores import map_scores
from patchword.metrics.targets import Targets
from tests.metrics.examples import GRID, SIZE, maps_of, scenes


def accuracy(maps, batch, kept=None):
    """The metric, of all phrases or of those that are kept."""
    every = torch.ones(len(maps), dtype=torch.bool)
    targets = Targets.of_batch(batch, every if kept is None else kept)
    metric = Grounding()
    metric.update(map_scores(maps, GRID, targets), targets)
    return metric.compute()["swap_accuracy"]


def by_loop(maps, batch, counted):
    """The metric, pair by pair and pixel by pixel."""
    large = upsample(maps, GRID, SIZE).double()
    masks, image = batch.phrase_mask, batch.caption_image[batch.phrase_caption]
    shares = []
    for i in range(len(batch)):
        own = [n for n in range(len(maps)) if image[n] == i and counted[n]]
        results = []
        for a in own:
            for b in own:
                same = batch.phrase_caption[a] == batch.phrase_caption[b]
                iou = (masks[a] & masks[b]).sum() / (masks[a] | masks[b]).sum()
                if a < b and same and iou < 0.5:
                    right = large[a][masks[a]].mean() + large[b][masks[b]].mean()
                    wrong = large[a][masks[b]].mean() + large[b][masks[a]].mean()
                    results.append(0.5 if abs(right - wrong) < 1e-9 else float(right > wrong))
        if results:
            shares.append(sum(results) / len(results))
    return sum(shares) / len(shares)


@pytest.mark.parametrize("levels", [2, 1000])
def test_equals_a_loop(levels):
    """Pairs are those of a caption; an image counts by its share of right pairs; uncounted phrases form no pairs."""
    batch = scenes(12, seed=levels)
    batch.phrase_mask[1] = batch.phrase_mask[0]  # two phrases of one object are no pair
    batch.phrase_mask[4] = False
    maps = maps_of(batch, levels=levels)
    kept = torch.ones(len(maps), dtype=torch.bool)
    kept[7] = False
    counted = kept & batch.phrase_mask.flatten(1).any(-1)
    found = accuracy(maps, batch, kept)
    assert found == pytest.approx(by_loop(maps, batch, counted), abs=1e-6)
    assert 0.2 < found < 0.8


def test_a_map_that_ignores_the_phrase_has_exactly_one_half():
    """This is what the metric is for: no position prior can win, and ties of equal sums do not depend on rounding."""
    batch = scenes(40, seed=3)
    count = len(batch.phrase_caption)
    for prior in (center_map(GRID), torch.rand(12) * 1e3, torch.zeros(12)):
        assert accuracy(prior.expand(count, -1), batch) == 0.5


def test_a_prior_in_all_maps_changes_nothing():
    """A center bias that an objective adds to all its maps neither helps nor harms."""
    batch = scenes(40)
    maps = maps_of(batch, levels=1000).double()
    assert accuracy(maps + 7 * center_map(GRID), batch) == pytest.approx(accuracy(maps, batch))


def test_the_masks_themselves_are_right():
    """A map that covers its own object wins every pair."""
    batch = scenes(20, seed=1)
    maps = torch.nn.functional.interpolate(batch.phrase_mask[:, None].float(), GRID, mode="area").flatten(1)
    assert accuracy(maps, batch) > 0.95
    assert accuracy(-maps, batch) < 0.05


def test_a_map_that_is_not_finite_has_no_accuracy():
    """A model that diverged must not look like chance."""
    batch = scenes(4)
    maps = maps_of(batch)
    maps[0, 0] = torch.inf
    assert accuracy(maps, batch) != accuracy(maps, batch)
