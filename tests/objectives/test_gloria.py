"""Tests of GLoRIA against golden values and against a loop that implements equations (3) to (9).

They detect common mistakes of re-implementations: padding in the softmax or sum over words, a softmax over the wrong
axis, and the cosine of a vector that consists of rounding errors.
"""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from patchword import Images, Texts, contrast
from patchword.contrast import LogitScale
from patchword.objectives import GLoRIA
from tests.golden import entries, features
from tests.objectives.test_pacl import Largest
from tests.objectives.test_sparc import cos
from tests.objectives.variants import DIM, build, gradients, pairs

Vector = list[float]

CHOICES = {"attention": ("paper", "code"), "similarity": ("dot", "scaled"), "aggregation": ("sum", "mean")}
SWITCHES: list[dict[str, Any]] = [dict(zip(CHOICES, x, strict=True)) for x in itertools.product(*CHOICES.values())]


def exactly(objective: GLoRIA, *temps: float) -> GLoRIA:
    """`objective` in float64, with exact values of its factors."""
    objective.double()
    for scale, value in zip((objective.temp1, objective.temp2, objective.temp3), temps, strict=True):
        torch.nn.init.constant_(scale.log, math.log(value))
    return objective


def softmax(x: Vector) -> Vector:
    total = sum(math.exp(n) for n in x)
    return [math.exp(n) / total for n in x]


def match_loop(image: list[Vector], words: list[Vector], temp1: float, temp2: float, switches: dict[str, Any]) -> float:
    """Equations (3) to (6) for one image and one text, in Python floats."""
    root = math.sqrt(len(image[0])) if switches["similarity"] == "scaled" else 1.0
    s = [[sum(a * b for a, b in zip(v, t, strict=True)) / root for v in image] for t in words]
    if switches["attention"] == "code":
        over_words = [softmax([row[p] for row in s]) for p in range(len(image))]
        s = [[over_words[p][w] for p in range(len(image))] for w in range(len(words))]
    total = 0.0
    for t, row in zip(words, s, strict=True):
        a = softmax([temp1 * x for x in row])
        c = [sum(x * v[d] for x, v in zip(a, image, strict=True)) for d in range(len(t))]
        total += math.exp(temp2 * cos(c, t))
    return math.log(total / len(words) if switches["aggregation"] == "mean" else total)


def cross_entropies(z: list[Vector]) -> float:
    """Equations (7) and (8): a sum of both directions."""
    loss = 0.0
    for i in range(len(z)):
        loss += math.log(sum(math.exp(x) for x in z[i])) + math.log(sum(math.exp(row[i]) for row in z)) - 2 * z[i][i]
    return loss / len(z)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("switches", SWITCHES, ids=lambda switches: "-".join(switches.values()))
def test_equals_loop(seed: int, switches: dict[str, Any]) -> None:
    """Both weighted terms and the score equal the loop."""
    images, texts = pairs(seed=seed, dtype=torch.float64)
    objective = exactly(GLoRIA(0.7, 0.3, **switches), 2.0, 3.0, 6.0)
    tokens = zip(texts.tokens.tolist(), texts.mask.tolist(), strict=True)
    words = [[t for t, real in zip(row, mask, strict=True) if real] for row, mask in tokens]
    local = [[match_loop(image, text, 2.0, 3.0, switches) for text in words] for image in images.patches.tolist()]
    pooled = [[cos(x, y) for y in texts.pooled.tolist()] for x in images.pooled.tolist()]
    terms = objective(images, texts)
    assert terms["global"].item() == pytest.approx(
        0.7 * cross_entropies([[6 * x for x in r] for r in pooled]), abs=1e-10
    )
    assert terms["local"].item() == pytest.approx(0.3 * cross_entropies([[6 * x for x in r] for r in local]), abs=1e-10)
    expected = [[(x + z / 3) / 2 for x, z in zip(*rows, strict=True)] for rows in zip(pooled, local, strict=True)]
    assert_close(objective.score(images, texts), torch.tensor(expected, dtype=torch.float64), atol=1e-10, rtol=0)


def golden(entry: dict[str, Any]) -> GLoRIA:
    """The objective that a golden entry describes."""
    switches = {
        "code": {"attention": "code"},
        "paper_single_softmax": {},
        "sparc_paper_sqrtD": {"similarity": "scaled"},
    }[entry["variant"]]
    return exactly(GLoRIA(**switches), *(entry["params"][name] for name in ("temp1", "temp2", "temp3")))


@pytest.mark.parametrize("entry", entries("gloria_local"))
def test_local_loss_equals_golden(entry: dict[str, Any]) -> None:
    """Attention, similarities and loss equal the golden values to 1e-10 in float64."""
    objective, (images, texts), expected = golden(entry), features(entry["case"]), entry["expected"]
    assert objective(images, texts)["local"].item() == pytest.approx(expected["loss_sum"], abs=1e-10)
    for found, name in [(objective.align(images, texts), "attn_own"), (objective.match(images, texts), "sim")]:
        assert_close(found, torch.tensor(expected[name], dtype=torch.float64), atol=1e-10, rtol=0)


@pytest.mark.parametrize("entry", entries("gloria_total"))
def test_total_equals_golden(entry: dict[str, Any]) -> None:
    terms = golden(entry)(*features(entry["case"]))
    assert terms["global"].item() == pytest.approx(entry["expected"]["global_sum"], abs=1e-10)
    assert terms["local"].item() == pytest.approx(entry["expected"]["local_sum"], abs=1e-10)
    assert sum(terms.values()).item() == pytest.approx(entry["expected"]["loss"], abs=1e-10)


@pytest.mark.parametrize("attention", ["paper", "code"])
def test_a_word_looks_at_other_words_only_in_the_code(attention: str) -> None:
    """Removing one word of a caption changes the attention of the others only with the softmax over words."""
    images, texts = pairs()
    mask = texts.mask.clone()
    mask[0, 0] = False
    objective = GLoRIA(attention=attention)
    before = objective.align(images, texts)[0, 1:]
    after = objective.align(images, replace(texts, mask=mask))[0, 1:]
    assert torch.equal(before, after) == (attention == "paper")


@pytest.mark.parametrize("aggregation", ["sum", "mean"])
def test_a_caption_said_twice_matches_better_only_by_the_sum(aggregation: str) -> None:
    images, texts = pairs()
    twice = Texts(texts.pooled, torch.cat([texts.tokens] * 2, 1), torch.cat([texts.mask] * 2, 1))
    objective = GLoRIA(aggregation=aggregation)
    longer = math.log(2) if aggregation == "sum" else 0.0
    assert_close(objective.match(images, twice), objective.match(images, texts) + longer)


@pytest.mark.parametrize("aggregation", ["sum", "mean"])
@pytest.mark.parametrize("attention", ["paper", "code"])
def test_an_empty_caption_matches_no_image_and_moves_none(attention: str, aggregation: str) -> None:
    images, texts = pairs()
    texts = replace(texts, mask=texts.mask & (torch.arange(5) != 2)[:, None])
    objective = GLoRIA(attention=attention, aggregation=aggregation)
    match = objective.match(images, texts)
    assert (match[:, 2] == 0).all()
    moved = torch.autograd.grad(match[:, 2].sum(), [images.patches, texts.tokens])
    assert all((x == 0).all() for x in moved)
    assert objective.score(images, texts).isfinite().all()


def test_no_tensor_outgrows_its_share_of_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither pass computes [B, B, L, P] of the complete batch, or D numbers for each word of a pair."""
    monkeypatch.setattr(contrast, "BUDGET", 4 * 16 * 4 * 6)  # the pairs of one image
    images, texts = pairs(batch=16)
    with Largest() as largest:
        gradients(build("GLoRIA"), images, texts)
    assert largest.numbers == max(16 * 4 * 6, 16 * 6 * DIM)


def test_what_cancels_out_matches_nothing() -> None:
    """With two opposite patches, c consists of rounding errors. Its cosine is in [-1, 1], with a bounded gradient."""
    generator = torch.Generator().manual_seed(0)
    v, t = torch.randn(200, 1, 32, generator=generator), torch.randn(200, 1, 32, generator=generator)
    for small in (0.0, 1e-7, 1e-4):
        patches = torch.cat([v, -v * (1 + small)], 1).requires_grad_()
        tokens = t - (t * v).sum(-1, keepdim=True) / v.square().sum(-1, keepdim=True) * v  # equally far from both
        images, texts = Images(v[:, 0], patches, (1, 2)), Texts(t[:, 0], tokens, torch.ones(200, 1).bool())
        cosines = GLoRIA().match(images, texts).diagonal() / 5
        assert (cosines.abs() <= 1).all()
        assert torch.autograd.grad(cosines.sum(), patches)[0].abs().max() < 1e4


def test_factors_are_fixed_unless_learned_and_stay_in_range() -> None:
    assert not any(p.requires_grad for p in GLoRIA().parameters())
    assert sum(p.requires_grad for p in GLoRIA(learn_temperatures=True).parameters()) == 3
    assert GLoRIA(temp1=LogitScale.maximum).temp1().item() == pytest.approx(100)
    with pytest.raises(ValueError, match=r"temp2 .* \[1, 100\.0\], not 0\.2"):
        GLoRIA(temp2=0.2)
