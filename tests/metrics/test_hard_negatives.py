"""Tests hard negatives against manual counts."""

import math

import pytest
import torch

from patchword.metrics import HardNegatives, pair_scores
from patchword.metrics.ties import beats, ties
from patchword.ops import cosine
from tests.metrics.examples import pairs


def test_counts_and_repeats():
    """Images without negatives do not count, and repeated samples count once, for any number of updates."""
    metric = HardNegatives()
    true, negative, image = torch.tensor([0.5, 0.9, 0.1]), torch.tensor([0.4, 0.5, 0.2]), torch.tensor([0, 0, 1])
    metric.update(true, negative, image, torch.tensor([7, 8, 9]))
    metric.update(
        torch.tensor([0.5, 0.3]), torch.tensor([0.4, 0.5, 0.1]), torch.tensor([0, 0, 1]), torch.tensor([7, 3])
    )
    expected = {"per_negative": 3 / 4, "per_image": 2 / 3, "chance_per_negative": 0.5, "negatives": 4, "images": 3}
    expected |= {"ties": 1}
    assert metric.compute() == pytest.approx(expected | {"chance_per_image": (1 / 3 + 1 / 2 + 1 / 2) / 3})


def test_ties_and_rounding_fail():
    """A bag of words cannot detect a swap: equal scores and rounding errors must not count as right."""
    true = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.0, torch.nan])
    negative = torch.tensor([0.5, 0.5 - 1e-7, 0.499, 0.501, 0.0, 0.0])
    assert beats(true, negative).tolist() == [False, False, True, False, False, False]
    assert ties(true, negative).tolist() == [True, True, False, False, True, False]


def test_ties_of_small_cosines_and_of_large_scores():
    """The rounding error of a small cosine is not small (as on SugarCrepe); that of a logit grows with the logit."""
    true = torch.tensor([0.001181526924483478, 1e-8, 0.00118, 80.0, 80.0])
    negative = torch.tensor([0.00118150538764894, -1e-8, 0.00117, 79.99999, 79.99])
    assert beats(true, negative).tolist() == [False, False, True, False, True]
    assert ties(true, negative).tolist() == [True, True, False, True, False]


@pytest.mark.parametrize("width", [64, 768])
def test_words_in_another_order_tie_for_a_text_tower_without_order(width: int):
    """Means of the same 14 words, added in two orders, tie with each other for every image."""
    generator = torch.Generator().manual_seed(0)
    words, images, adapter = (torch.randn(n, width, generator=generator) for n in (1000, 200, width))
    captions = torch.randint(1000, (200, 14), generator=generator)
    swapped = captions[:, torch.randperm(14, generator=generator)]
    scores = [cosine(images, words[ids].mean(1) @ adapter).diagonal() for ids in (captions, swapped)]
    assert (scores[0] != scores[1]).any(), "the order of additions must show for this test to mean something"
    assert ties(*scores).all()
    metric = HardNegatives()
    metric.update(*scores, torch.arange(200), torch.arange(200))
    assert (metric.compute()["per_negative"], metric.compute()["ties"]) == (0, 200)


def test_nothing():
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert math.isnan(HardNegatives().compute()["per_negative"])
    metric = HardNegatives()
    metric.update(torch.ones(2), torch.zeros(0), torch.zeros(0, dtype=torch.long), torch.arange(2))
    assert metric.compute()["images"] == 0


def test_pair_scores_equal_the_matrix():
    """Scores are in the order of the texts; images without texts are left out."""
    images, texts, _ = pairs(4, [2, 2, 1, 1])
    own = torch.tensor([3, 0, 0, 3, 1, 0])
    matrix = cosine(images.pooled, texts.pooled)
    scores = pair_scores(lambda x, y: cosine(x.pooled, y.pooled), images, texts, own)
    torch.testing.assert_close(scores, matrix[own, torch.arange(6)])


def test_equals_a_loop():
    """The metric equals a loop for random samples with 0 to 3 negatives each and many ties."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.arange(20) % 4
    image = torch.arange(20).repeat_interleave(counts)[torch.randperm(int(counts.sum()), generator=generator)]
    true, negative = (torch.randint(3, (n,), generator=generator).float() for n in (20, len(image)))
    metric = HardNegatives()
    metric.update(true, negative, image, torch.arange(20))
    wins = [[bool(true[i] > negative[m]) for m in range(len(image)) if image[m] == i] for i in range(20)]
    wins = [found for found in wins if found]
    equal = sum(bool(true[i] == negative[m]) for m, i in enumerate(image.tolist()))
    expected = {
        "per_negative": sum(map(sum, wins)) / sum(map(len, wins)),
        "per_image": sum(map(all, wins)) / len(wins),
        "chance_per_negative": 0.5,
        "chance_per_image": sum(1 / (1 + len(found)) for found in wins) / len(wins),
    }
    assert metric.compute() == pytest.approx(expected | {"negatives": len(image), "images": len(wins), "ties": equal})
