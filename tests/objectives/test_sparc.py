"""Tests of SPARC against golden values and against a loop that implements equations (2) to (6).

They detect common mistakes of re-implementations: padded tokens in the softmax or filled with 0, a softmax over the
wrong axis, min-max over words instead of patches, and NaN for constant images.
"""

import math
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from patchword import Images, Texts
from patchword.objectives import SPARC
from tests.golden import entries, features, with_scale
from tests.objectives.variants import build, pairs

Vector = list[float]


def cos(x: Vector, y: Vector) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True)) / (math.hypot(*x) * math.hypot(*y))


def weights_loop(token: Vector, patches: list[Vector], weights: str, threshold: float | None) -> Vector:
    """Equations (2) to (4) for one token."""
    s = [sum(a * b for a, b in zip(token, patch, strict=True)) for patch in patches]
    if weights == "softmax":
        kept = [math.exp(x) for x in s]
    else:
        kept = [(x - min(s)) / (max(s) - min(s)) for x in s]
        if weights == "sparse":
            sigma = 1 / len(patches) if threshold is None else threshold
            kept = [x if x >= sigma else 0.0 for x in kept]
    return [x / sum(kept) for x in kept]


def local_loop(images: Images, texts: Texts, k: float, switches: dict[str, Any]) -> float:
    """Equation (6), computed one token at a time in Python floats."""
    groups, words = [], []  # for each caption, the vectors of its real tokens only
    for patches, tokens, mask in zip(images.patches.tolist(), texts.tokens.tolist(), texts.mask.tolist(), strict=True):
        words.append([token for token, real in zip(tokens, mask, strict=True) if real])
        groups.append([])
        for token in words[-1]:
            a = weights_loop(token, patches, switches.get("weights", "sparse"), switches.get("threshold"))
            groups[-1].append([sum(w * p[d] for w, p in zip(a, patches, strict=True)) for d in range(len(token))])
    losses: list[list[float]] = []
    for b in range(len(words)):
        losses.append([])
        for j in range(len(words[b])):
            rivals = range(len(words)) if switches.get("negatives") == "batch" else [b]
            to_words = sum(math.exp(k * cos(groups[b][j], t)) for r in rivals for t in words[r])
            to_groups = sum(math.exp(k * cos(words[b][j], c)) for r in rivals for c in groups[r])
            positive = math.exp(k * cos(groups[b][j], words[b][j]))
            losses[b].append(-(math.log(positive / to_words) + math.log(positive / to_groups)) / 2)
    if switches.get("reduction") == "sample":
        return sum(sum(row) / len(row) for row in losses) / len(losses)
    return sum(map(sum, losses)) / sum(map(len, losses))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"weights": "minmax"},
        {"weights": "softmax"},
        {"threshold": 0.5},
        {"reduction": "sample"},
        {"negatives": "batch"},
        {"negatives": "batch", "reduction": "sample"},
    ],
    ids=str,
)
def test_local_loss_equals_loop(seed: int, switches: dict[str, Any]) -> None:
    images, texts = pairs(seed=seed, dtype=torch.float64)
    objective = with_scale(SPARC(**switches), 5.0)
    found = objective(images, texts)["local"].item()
    assert found == pytest.approx(local_loop(images, texts, 5.0, switches), abs=1e-10)


def switches_of(entry: dict[str, Any]) -> dict[str, Any]:
    """The constructor arguments that a golden entry describes."""
    params, switches = entry["params"], {}
    if params.get("reduction") == "macro":
        switches["reduction"] = "sample"
    if params.get("sigma") == 0.0:
        switches["weights"] = "minmax"
    if "weights" in params:
        switches["weights"] = "softmax"
    if params.get("normalise_before"):
        switches["similarity"] = "cosine"
    return switches


@pytest.mark.parametrize("entry", entries("sparc_local"))
def test_local_loss_equals_golden(entry: dict[str, Any]) -> None:
    """Weights, groups and loss equal golden values to 1e-10 in float64, and gradients finite differences to 1e-7."""
    objective = with_scale(SPARC(**switches_of(entry)), entry["params"]["inv_tau"])
    images, texts = features(entry["case"])
    loss, expected = objective(images, texts)["local"], entry["expected"]
    if "d_patches" in expected:
        gradients = torch.autograd.grad(loss, [images.patches, texts.tokens])
        for found, name in zip(gradients, ["d_patches", "d_tokens"], strict=True):
            assert_close(found, torch.tensor(expected[name], dtype=torch.float64), atol=1e-7, rtol=0)
        return
    assert loss.item() == pytest.approx(expected["loss"], abs=1e-10)
    a = torch.tensor(expected["a"], dtype=torch.float64) * texts.mask[..., None]
    assert_close(objective.align(images, texts), a, atol=1e-10, rtol=0)
    groups = torch.tensor(expected["c"], dtype=torch.float64)[texts.mask]
    assert_close((objective.align(images, texts) @ images.patches)[texts.mask], groups, atol=1e-10, rtol=0)


@pytest.mark.parametrize("entry", entries("sparc_total"))
def test_total_equals_golden(entry: dict[str, Any]) -> None:
    params = entry["params"]
    objective = SPARC(params["lambda_g"], params["lambda_f"], **switches_of(entry))
    terms = with_scale(objective, params["inv_tau"])(*features(entry["case"], params["text_pool"]))
    assert sum(terms.values()).item() == pytest.approx(entry["expected"]["loss"], abs=1e-10)
    assert terms["global"].item() == pytest.approx(0.5 * entry["expected"]["loss_global"], abs=1e-10)
    assert terms["local"].item() == pytest.approx(entry["expected"]["loss_local"], abs=1e-10)


@pytest.mark.parametrize("entry", [e for e in entries("sparc_edge") if "patches" in e.values[0]])
def test_edge_equals_golden(entry: dict[str, Any]) -> None:
    """The edge cases are the inclusive threshold, constant rows, one patch, one token, and an empty caption."""
    patches = torch.tensor(entry["patches"], dtype=torch.float64)
    tokens = torch.tensor(entry["tokens"], dtype=torch.float64)
    mask = torch.tensor(entry.get("mask", torch.ones(tokens.shape[:2]).tolist())).bool()
    images, texts = Images(patches.mean(1), patches, (1, patches.shape[1])), Texts(tokens.mean(1), tokens, mask)
    objective, expected = with_scale(SPARC(), float(entry.get("inv_tau", 2.0))), entry["expected"]
    a = objective.align(images, texts)
    if "a" in expected:
        assert_close(a, torch.tensor(expected["a"], dtype=torch.float64), atol=1e-10, rtol=0)
    if "c" in expected:
        assert_close(a @ patches, torch.tensor(expected["c"], dtype=torch.float64), atol=1e-10, rtol=0)
    for name in ("loss", "loss_micro"):
        if name in expected:
            assert objective(images, texts)["local"].item() == pytest.approx(expected[name], abs=1e-10)


def test_scaling_the_weights_of_a_row_changes_no_loss() -> None:
    """The division in equation (4) affects only maps, because the group is normalized before it is compared."""
    images, texts = pairs(dtype=torch.float64)
    objective = build("SPARC", torch.float64)
    before = objective(images, texts)["local"]
    divided = objective.align
    objective.align = lambda i, t: 7.0 * divided(i, t)
    assert_close(objective(images, texts)["local"], before)


def test_local_loss_never_looks_at_other_pairs() -> None:
    """The tokens of each caption are contrasted only with each other."""
    images, texts = pairs(dtype=torch.float64)
    objective = with_scale(SPARC(reduction="sample"), 5.0)
    alone = [objective(images[b : b + 1], texts[b : b + 1])["local"].item() for b in range(5)]
    assert objective(images, texts)["local"].item() == pytest.approx(sum(alone) / 5, abs=1e-12)


def test_detached_weights_stop_their_gradient_and_keep_the_loss() -> None:
    images, texts = pairs()
    through, stopped = build("SPARC"), build("SPARC-detach_weights=True")
    assert_close(through(images, texts), stopped(images, texts))
    flows = torch.autograd.grad(through(images, texts)["local"], images.patches)[0]
    blocked = torch.autograd.grad(stopped(images, texts)["local"], images.patches)[0]
    assert (flows - blocked).abs().max() > 1e-4


def test_temperature_is_shared_unless_separate() -> None:
    assert len(list(SPARC().parameters())) == 1
    assert len(list(SPARC(separate_temperature=True).parameters())) == 2


def test_threshold_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="threshold must lie in"):
        SPARC(threshold=1.5)
