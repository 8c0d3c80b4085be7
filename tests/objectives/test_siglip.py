"""Tests of SigLIP against golden values and a loop, and with large numbers.

They detect common mistakes of re-implementations: a mean over all B^2 pairs, a logit that overflows, and a bias that
starts at zero.
"""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from patchword.objectives import SigLIP
from tests.golden import entries, features, with_scale
from tests.objectives.test_sparc import cos
from tests.objectives.variants import pairs


def loop(images: list[list[float]], texts: list[list[float]], k: float, b: float) -> float:
    """Algorithm 1, computed one pair at a time."""
    total = 0.0
    for i, x in enumerate(images):
        for j, y in enumerate(texts):
            z = 1 if i == j else -1
            total += math.log(1 + math.exp(-z * (k * cos(x, y) + b)))
    return total / len(images)


@pytest.mark.parametrize("seed", range(3))
def test_equals_loop(seed: int) -> None:
    images, texts = pairs(seed=seed, dtype=torch.float64)
    objective = SigLIP(temperature=0.2, bias=-1.5).double()
    expected = loop(images.pooled.tolist(), texts.pooled.tolist(), objective.scale().item(), -1.5)
    assert objective(images, texts)["global"].item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("entry", entries("siglip"))
def test_equals_golden(entry: dict[str, Any]) -> None:
    objective = with_scale(SigLIP(bias=entry["params"]["bias"]), entry["params"]["inv_tau"])
    images, texts = features(entry["case"])
    assert objective(images, texts)["global"].item() == pytest.approx(entry["expected"]["loss"], abs=1e-10)
    logits = objective.scale() * objective.score(images, texts) + objective.bias
    expected = torch.tensor(entry["expected"]["logits"], dtype=torch.float64)
    torch.testing.assert_close(logits, expected, atol=1e-10, rtol=0)


def test_starts_as_the_paper_does() -> None:
    """k = 10 and b = -10: a perfect match has logit 0."""
    objective = SigLIP()
    assert objective.scale().item() == pytest.approx(10)
    assert objective.bias.item() == -10


def test_sums_over_texts_and_averages_over_images_only() -> None:
    """The loss of B unrelated pairs grows with B. A mean over B^2 pairs would not grow."""
    images, texts = pairs(batch=8, dtype=torch.float64)
    objective = SigLIP(bias=0.0).double()
    assert objective(images, texts)["global"] > 1.5 * objective(images[:4], texts[:4])["global"]


def test_no_logit_is_too_large() -> None:
    """For a confidently wrong pair, softplus is about the logit, while log(sigmoid) is infinite."""
    images, texts = pairs()
    opposite = replace(texts, pooled=-images.pooled)
    loss = SigLIP(temperature=0.01, bias=-100.0)(images, opposite)["global"]
    assert loss.isfinite()
    assert loss > 190
