"""Tests that several processes give the same metrics as one process."""

import pytest
import torch

from patchword.features import Images, Texts
from patchword.metrics import Grounding, HardNegatives, Retrieval
from patchword.metrics.map_scores import map_scores
from patchword.metrics.targets import Targets
from tests.metrics.examples import GRID, maps_of, pairs, scenes
from tests.ranks import on_ranks


def token_score(images: Images, texts: Texts):
    best = torch.einsum("ipd,tld->itlp", images.patches, texts.tokens).amax(-1)
    return (best * texts.mask).sum(-1) / texts.mask.sum(-1).clamp_min(1)


def measure(parts):
    """All metrics of these parts; a part is the seed of a batch, and part 0 has no phrases."""
    grounding, retrieval, negatives = Grounding(), Retrieval(token_score, tokens=True, block=4), HardNegatives()
    for part in parts:
        batch = scenes(3 + part, seed=part, first_id=10 * part, phrases=3 if part else 0)
        targets = Targets.of_batch(batch, torch.ones(len(batch.phrase_caption), dtype=torch.bool))
        grounding.update(map_scores(maps_of(batch, part), GRID, targets), targets)
        count = len(batch.ids)
        images, texts, own = pairs(count, [1 + i % 2 for i in range(count)], seed=part)
        cut = int(texts.mask.any(0).nonzero().max()) + 1 - (part == 1)  # ranks differ in padding
        texts = Texts(texts.pooled, texts.tokens[:, :cut], texts.mask[:, :cut])
        retrieval.update(images, texts, own, batch.ids)
        scores = torch.sin(torch.arange(len(batch.negative_image)) + part)
        negatives.update(torch.cos(batch.ids.float()), scores, batch.negative_image, batch.ids)
    return {
        f"{type(metric).__name__}/{name}": value
        for metric in (grounding, retrieval, negatives)
        for name, value in metric.compute().items()
    }


def measure_rank(rank, parts):
    return measure(parts[rank])


@pytest.mark.parametrize("shares", [[[0, 2], [1, 3, 0]], [[0, 2], [1, 0], [3]]], ids=["2", "3"])
def test_ranks_equal_one(shares):
    """Ranks differ in size and padding, one part has no phrases, and one batch is repeated as by a sampler."""
    expected = measure([0, 1, 2, 3])
    for found in on_ranks(measure_rank, shares, ranks=len(shares)):
        assert found == pytest.approx(expected, nan_ok=True)
    assert not any(value != value for value in expected.values())
