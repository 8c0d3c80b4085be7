"""Tests of CLIP against golden values and against a loop that implements equation (1)."""

import math
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from patchword import Images, Texts
from patchword.objectives import CLIP
from tests.golden import entries, features, with_scale
from tests.objectives.variants import pairs


def loop(images: Images, texts: Texts, k: float) -> float:
    """Equation (1), computed one pair at a time in Python floats."""

    def cos(x: list[float], y: list[float]) -> float:
        return sum(a * b for a, b in zip(x, y, strict=True)) / (math.hypot(*x) * math.hypot(*y))

    x, y = images.pooled.tolist(), texts.pooled.tolist()
    loss = 0.0
    for i in range(len(x)):
        to_texts = [math.exp(k * cos(x[i], y[j])) for j in range(len(y))]
        to_images = [math.exp(k * cos(x[j], y[i])) for j in range(len(x))]
        loss -= math.log(to_texts[i] / sum(to_texts)) + math.log(to_images[i] / sum(to_images))
    return loss / (2 * len(x))


@pytest.mark.parametrize("entry", entries("clip"))
def test_equals_golden(entry: dict[str, Any]) -> None:
    objective = with_scale(CLIP(), entry["params"]["inv_tau"])
    images, texts = features(entry["case"])
    expected = torch.tensor(entry["expected"]["loss"], dtype=torch.float64)
    assert_close(objective(images, texts)["global"], expected, atol=1e-10, rtol=0)
    logits = torch.tensor(entry["expected"]["logits"], dtype=torch.float64)
    assert_close(entry["params"]["inv_tau"] * objective.score(images, texts), logits, atol=1e-10, rtol=0)


@pytest.mark.parametrize("seed", range(3))
def test_equals_loop(seed: int) -> None:
    images, texts = pairs(seed=seed, dtype=torch.float64)
    objective = with_scale(CLIP(), 12.0)
    assert objective(images, texts)["global"].item() == pytest.approx(loop(images, texts, 12.0), abs=1e-10)


def test_map_is_the_cosine_of_token_and_patch() -> None:
    images, texts = pairs()
    expected = torch.nn.functional.cosine_similarity(texts.tokens[:, :, None], images.patches[:, None], dim=-1)
    assert_close(CLIP().align(images, texts), expected * texts.mask[..., None])


def test_temperature_stays_between_one_hundredth_and_one() -> None:
    objective = CLIP()
    for value, kept in [(7.0, 100.0), (-1.0, 1.0), (2.0, math.exp(2.0))]:
        with torch.no_grad():
            objective.scale.log.fill_(value)
        objective.scale.clamp_()
        assert objective.scale().item() == pytest.approx(kept, rel=1e-5)
    with pytest.raises(ValueError, match="temperature must lie in"):
        CLIP(temperature=0.0)
