"""Tests of FILIP against golden values and against a loop that implements the equations in its docstring.

They detect common mistakes of re-implementations: one matrix for both directions, both softmaxes over the same axis,
padding in a maximum, and token dropping that does not affect the loss.
"""

import math
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from patchword import Images, Texts
from patchword.objectives import FILIP
from tests.golden import entries, features, with_scale
from tests.objectives.test_sparc import cos
from tests.objectives.variants import build, pairs

Vector = list[float]


def best(scores: list[float], ratio: float) -> list[int]:
    """The positions of the largest scores: the share `ratio` of all scores, but at least one."""
    number = max(math.floor(ratio * len(scores)), 1)
    return sorted(range(len(scores)), key=lambda n: -scores[n])[:number]


def loop(images: Images, texts: Texts, k: float, switches: dict[str, Any]) -> float:
    """The equations, computed one token at a time in Python floats."""
    patches: list[list[Vector]] = images.patches.tolist()
    rows = zip(texts.tokens.tolist(), texts.mask.tolist(), strict=True)
    words = [[t for t, real in zip(tokens, mask, strict=True) if real] for tokens, mask in rows]
    every_word, every_patch = [t for text in words for t in text], [v for image in patches for v in image]
    ratio = switches.get("keep_ratio", 1.0)
    good_patches = [[v[n] for n in best([max(cos(x, t) for t in every_word) for x in v], ratio)] for v in patches]
    good_words = [[t[n] for n in best([max(cos(x, v) for v in every_patch) for x in t], ratio)] for t in words]
    if switches.get("drop") == "both":
        patches, words = good_patches, good_words
    batch = range(len(patches))
    to_texts = [
        [sum(max(cos(v, t) for t in good_words[j]) for v in patches[i]) / len(patches[i]) for j in batch] for i in batch
    ]
    to_images = [
        [sum(max(cos(v, t) for v in good_patches[i]) for t in words[j]) / len(words[j]) for i in batch] for j in batch
    ]
    smooth = switches.get("label_smoothing", 0.0)
    losses = []
    for logits in to_texts, to_images:
        for i in batch:
            log_sum = math.log(sum(math.exp(k * z) for z in logits[i]))
            goal = (1 - smooth) * logits[i][i] + smooth * sum(logits[i]) / len(batch)
            losses.append(log_sum - k * goal)
    return sum(losses) / len(losses)


SWITCHES: list[dict[str, Any]] = [
    {},
    {"label_smoothing": 0.1},
    {"keep_ratio": 0.6},
    {"keep_ratio": 0.6, "drop": "both"},
    {"keep_ratio": 0.1},
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_equals_loop(seed: int, switches: dict[str, Any]) -> None:
    images, texts = pairs(seed=seed, dtype=torch.float64)
    objective = with_scale(FILIP(**switches), 5.0)
    found = objective(images, texts)["local"].item()
    assert found == pytest.approx(loop(images, texts, 5.0, switches), abs=1e-10)


@pytest.mark.parametrize("entry", entries("filip"))
def test_equals_golden(entry: dict[str, Any]) -> None:
    """Both matrices, the selection of token dropping and the loss equal the golden values to 1e-10 in float64."""
    params, expected = entry["params"], entry["expected"]
    padding = "zero" if "pad_zero" in entry["variant"] else "exclude"
    objective = FILIP(params.get("keep", 1.0), params.get("drop", "keys"), padding)
    objective, (images, texts) = with_scale(objective, params["inv_tau"]), features(entry["case"])
    assert objective(images, texts)["local"].item() == pytest.approx(expected["loss"], abs=1e-10)
    best_images, best_texts = objective.best(images, texts)
    if params.get("drop") == "both":
        images, texts = best_images, best_texts
    if "keep" in params:
        kept = torch.tensor(expected["keep_patches"], dtype=torch.bool)
        assert_close(
            best_images.patches.flatten().sort().values,
            features(entry["case"])[0].patches[kept].flatten().sort().values,
        )
        assert_close(best_texts.mask.double(), torch.tensor(expected["keep_tokens"], dtype=torch.float64))
    else:
        best_images, best_texts = images, texts
    to_texts = objective.similarities(images, best_texts)[0]
    to_images = objective.similarities(best_images, texts)[1]
    for found, name in (to_texts, "s_i2t"), (to_images.T, "s_t2i"):
        assert_close(found, torch.tensor(expected[name], dtype=torch.float64), atol=1e-10, rtol=0)


def test_the_two_directions_are_two_matrices() -> None:
    images, texts = pairs()
    to_texts, to_images = build("FILIP").similarities(images, texts)
    assert (to_texts - to_images).abs().max() > 0.05
    assert_close(build("FILIP").score(images, texts), to_texts)
    assert_close(build("FILIP").text_to_image_score(images, texts), to_images)


def test_dropped_tokens_still_speak_unless_both_sides_drop() -> None:
    """With `keys`, a dropped patch has a term in the mean. With `both` it has neither a term nor a gradient."""
    images, texts = pairs()
    for drop, silent in ("keys", False), ("both", True):
        objective = FILIP(keep_ratio=0.2, drop=drop)
        gradient = torch.autograd.grad(objective(images, texts)["local"], images.patches)[0]
        kept = objective.best(images, texts)[0].patches
        dropped = ~(images.patches[:, :, None] == kept[:, None]).all(-1).any(-1)
        assert dropped.any()
        assert (gradient[dropped] == 0).all() == silent


def test_temperatures_are_shared_unless_separate() -> None:
    assert len(list(FILIP().parameters())) == 1
    assert len(list(FILIP(separate_temperatures=True).parameters())) == 2


@pytest.mark.parametrize("ratio", [0.0, 1.5, -1.0])
def test_keep_ratio_out_of_range_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="keep_ratio must lie in"):
        FILIP(keep_ratio=ratio)


def test_label_smoothing_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="label_smoothing must lie in"):
        FILIP(label_smoothing=1.0)
