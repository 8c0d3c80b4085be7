"""Tests confidence intervals against a loop that draws images."""

import numpy as np
import pytest
import torch

from patchword.metrics import Grounding, HardNegatives, Retrieval
from patchword.metrics.bootstrap import RESAMPLES, ImageTotals
from patchword.metrics.map_scores import COLUMNS, map_scores
from patchword.metrics.targets import Targets
from tests.metrics.examples import GRID, maps_of, pairs, scenes


def by_loop(values, image, images, seed=1):
    """The percentiles of the mean over the entries of images that are drawn with replacement."""
    rng = np.random.default_rng(seed)
    of_image = [np.array([v for v, i in zip(values, image, strict=True) if i == n]) for n in range(images)]
    means = []
    for _ in range(4 * RESAMPLES):
        drawn = np.concatenate([of_image[n] for n in rng.integers(images, size=images)])
        if len(drawn):
            means.append(drawn.mean())
    return np.quantile(means, [0.025, 0.975])


def test_equals_a_loop_that_draws_images():
    """The entries of an image are drawn together; intervals of single entries would be half as wide here."""
    rng = np.random.default_rng(0)
    level = rng.random(40)
    image = rng.integers(40, size=400)
    values = (rng.random(400) < level[image]).astype(float)
    totals = ImageTotals(40, torch.from_numpy(image))
    totals.add("all", torch.from_numpy(values))
    odd = image % 2 == 1
    totals.add("odd", torch.from_numpy(values), torch.from_numpy(odd))
    found = totals.intervals()
    assert totals.means() == pytest.approx({"all": values.mean(), "odd": values[odd].mean()})
    np.testing.assert_allclose(found["all"], by_loop(values, image, 40), atol=0.01)
    np.testing.assert_allclose(found["odd"], by_loop(values[odd], image[odd], 40), atol=0.015)
    single = by_loop(values, np.arange(400), 400)
    assert found["all"][1] - found["all"][0] > 1.5 * (single[1] - single[0])


def test_differences_are_paired_by_image():
    """The same images are drawn for both: a constant gain has no spread, and gains of images that of a loop."""
    rng = np.random.default_rng(0)
    image = rng.integers(30, size=200)
    values, gain = rng.random(30)[image] * 10, rng.random(200)
    one, other = (ImageTotals(30, torch.from_numpy(image)) for _ in range(2))
    one.add("constant", torch.from_numpy(values + 0.5))
    one.add("varied", torch.from_numpy(values + gain))
    one.add("diverged", torch.full((200,), torch.nan))
    for name in ("constant", "varied", "diverged"):
        other.add(name, torch.from_numpy(values))
    found = one.differences(other)
    assert found["constant"] == pytest.approx((0.5, 0.5, 0.5))
    assert found["varied"] == pytest.approx((gain.mean(), *by_loop(gain, image, 30)), abs=0.015)
    assert other.differences(one)["varied"][0] == pytest.approx(-gain.mean())
    assert {*found} == {"constant", "varied"}
    with pytest.raises(ValueError, match="30 and 29 images"):
        one.differences(ImageTotals(29, torch.arange(29)))


def test_metrics_without_a_number_have_no_interval():
    """A metric without entries, with NaN, or of one image has no interval, and does not harm the others."""
    totals = ImageTotals(3, torch.arange(3))
    totals.add("fine", torch.ones(3))
    totals.add("nothing", torch.ones(3), torch.zeros(3, dtype=torch.bool))
    totals.add("diverged", torch.tensor([0.0, torch.nan, 1.0]))
    assert totals.intervals() == {"fine": (1.0, 1.0)}
    one = ImageTotals(1, torch.zeros(2, dtype=torch.long))
    one.add("fine", torch.ones(2))
    assert one.intervals() == {}


def test_intervals_of_grounding():
    """Intervals are those of the phrases' scores by image; the accuracy of swaps is first averaged within images."""
    batch = scenes(30)
    kept = torch.ones(len(batch.phrase_caption), dtype=torch.bool)
    targets = Targets.of_batch(batch, kept)
    scores = map_scores(maps_of(batch, levels=1000), GRID, targets)
    metric = Grounding()
    metric.update(scores, targets)
    values = metric.compute()
    found = metric.totals.intervals()
    image = batch.caption_image[batch.phrase_caption].numpy()
    expected = by_loop(scores[:, COLUMNS.index("auroc")].numpy(), image, 30)
    np.testing.assert_allclose(found["auroc"], expected, atol=0.02)
    right, number = (np.bincount(image, scores[:, COLUMNS.index(name)].numpy()) for name in ("swaps_right", "swaps"))
    some = number > 0
    expected = by_loop(right[some] / number[some], np.flatnonzero(some), 30)
    np.testing.assert_allclose(found["swap_accuracy"], expected, atol=0.03)
    for name, (low, high) in found.items():
        assert low <= values[name] <= high
    assert {"average_precision_small", "average_precision_medium", "box_accuracy"} <= {*found}


def test_intervals_of_retrieval_and_hard_negatives():
    """Recalls of captions are drawn by image; folds have no intervals."""
    images, texts, own = pairs(20, [1 + i % 3 for i in range(20)])
    metric = Retrieval(lambda a, b: a.pooled @ b.pooled.T)
    metric.update(images, texts, own, torch.arange(20))
    values, found = metric.compute(), metric.totals.intervals()
    assert {*found} == {f"{way}/r@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)}
    for name, (low, high) in found.items():
        assert low <= values[name] <= high
    assert found["text_to_image/r@10"][0] < found["text_to_image/r@10"][1]
    negatives = HardNegatives()
    negatives.update(torch.zeros(9), torch.linspace(-1, 1, 18), torch.arange(18) % 9, torch.arange(9))
    values = negatives.compute()
    low, high = negatives.totals.intervals()["per_negative"]
    assert low <= values["per_negative"] <= high
