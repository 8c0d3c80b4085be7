"""Tests of PACL against golden values and against a loop that implements its equations.

They detect a mistake of a public port, which pools each image with its own text and then compares it with all texts, so
that the positives leak (`pooling: own` reproduces this mistake on purpose).
"""

import math
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from patchword import Images, Texts
from patchword.objectives import PACL
from patchword.ops import normalize
from tests.golden import entries, features, with_scale
from tests.objectives.test_sparc import cos
from tests.objectives.variants import DIM, gradients, pairs

Vector = list[float]

SWITCHES: list[dict[str, Any]] = [
    {"compatibility": compatibility, "pooling": pooling, "attention_scale": scale}
    for compatibility in ("dot", "cosine")
    for pooling in ("pairwise", "own")
    for scale in (1.0, 9.0)
]


def unit(x: Vector) -> Vector:
    return [n / math.hypot(*x) for n in x]


def phi_loop(image: list[Vector], query: Vector, text: Vector, switches: dict[str, Any]) -> float:
    """The compatibility of `text` and of an image pooled by `query`, in Python floats."""
    e = [math.exp(switches.get("attention_scale", 1.0) * cos(v, query)) for v in image]
    u = [sum(w / sum(e) * unit(v)[d] for w, v in zip(e, image, strict=True)) for d in range(len(text))]
    if switches.get("compatibility") == "cosine":
        return cos(u, text)
    return sum(a * b for a, b in zip(u, unit(text), strict=True))


def loop(images: Images, texts: Texts, k: float, switches: dict[str, Any]) -> float:
    """The loss, computed one pair at a time."""
    patches, y, batch = images.patches.tolist(), texts.pooled.tolist(), range(len(images))
    own = switches.get("pooling") == "own"
    phi = [[phi_loop(patches[i], y[i] if own else y[j], y[j], switches) for j in batch] for i in batch]
    loss = 0.0
    for i in batch:
        to_texts = sum(math.exp(k * phi[i][j]) for j in batch)
        to_images = sum(math.exp(k * phi[j][i]) for j in batch)
        loss -= 2 * k * phi[i][i] - math.log(to_texts) - math.log(to_images)
    return loss / (2 * len(images))


def compared(objective: PACL, images: Images, texts: Texts) -> torch.Tensor:
    """The matrix phi from which one process computes the loss."""
    seen: list[torch.Tensor] = []
    phi = objective.phi
    objective.phi = lambda v, y: seen.append(phi(v, y)) or seen[-1]  # type: ignore[method-assign, func-returns-value]
    objective(images, texts)
    del objective.phi
    return seen[0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_equals_loop(seed: int, switches: dict[str, Any]) -> None:
    images, texts = pairs(seed=seed, dtype=torch.float64)
    objective = with_scale(PACL(**switches), 7.0)
    assert objective(images, texts)["global"].item() == pytest.approx(loop(images, texts, 7.0, switches), abs=1e-10)
    patches, y = images.patches.tolist(), texts.pooled.tolist()
    expected = [[phi_loop(image, text, text, switches) for text in y] for image in patches]
    found = objective.score(images, texts)  # pairwise, whatever the pooling of the loss
    assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-10, rtol=0)


@pytest.mark.parametrize("entry", entries("pacl"))
def test_equals_golden(entry: dict[str, Any]) -> None:
    """Weights, compatibilities and loss equal the golden values to 1e-10 in float64."""
    pooling, compatibility = entry["variant"].split("/")
    switches = {"pooling": pooling, "compatibility": {"cos": "cosine"}.get(compatibility, compatibility)}
    objective = PACL(**switches, attention_scale=entry["params"]["attn_scale"])
    with_scale(objective, entry["params"]["inv_tau"])
    (images, texts), expected = features(entry["case"]), entry["expected"]

    def golden(name: str) -> torch.Tensor:
        return torch.tensor(expected[name], dtype=torch.float64)

    assert_close(objective(images, texts)["global"], golden("loss"), atol=1e-10, rtol=0)
    assert_close(compared(objective, images, texts), golden("phi"), atol=1e-10, rtol=0)
    weights = objective.attend(normalize(images.patches) @ normalize(texts.pooled).T)
    assert_close(weights.mT, golden("attn"), atol=1e-10, rtol=0)


@pytest.mark.parametrize("compatibility", ["dot", "cosine"])
def test_what_is_compared_knows_its_partner_only_under_own_pooling(compatibility: str) -> None:
    """With pairwise pooling, another text of image 0 changes only the comparisons with this text."""
    images, texts = pairs()
    pooled = texts.pooled.detach().clone()
    pooled[0] = pairs(seed=1)[1].pooled[0]
    other = Texts(pooled, texts.tokens, texts.mask)
    for pooling in ("pairwise", "own"):
        objective = PACL(compatibility, pooling=pooling)
        before, after = compared(objective, images, texts), compared(objective, images, other)
        changed = (before - after).abs() > 1e-4
        assert changed[:, 0].all()
        assert not changed[1:, 1:].any()
        assert changed[0, 1:].all() if pooling == "own" else not changed[0, 1:].any()


def test_own_pooling_beats_chance_without_any_alignment() -> None:
    """For random embeddings, a loss below log B can only come from the leak."""
    images, texts = pairs(batch=32)
    pairwise, own = (PACL(attention_scale=9.0, pooling=p, temperature=0.3)(images, texts) for p in ("pairwise", "own"))
    assert own["global"] < 0.8 * math.log(32) < math.log(32) < pairwise["global"]


class Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor that is computed in this context."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for x in found if isinstance(found, tuple) else [found]:
            self.numbers = max(self.numbers, x.numel() if isinstance(x, torch.Tensor) else 0)
        return found


def test_the_dot_product_needs_one_number_for_each_patch_of_a_pair() -> None:
    """Neither pass computes a tensor [B, B, P, D]."""
    images, texts = pairs(batch=16)
    with Largest() as largest:
        gradients(PACL(learn_temperature=True), images, texts)
    assert largest.numbers == 16 * 16 * 6
    assert DIM < 16


def test_map_is_the_cosine_of_token_and_patch() -> None:
    images, texts = pairs()
    expected = torch.nn.functional.cosine_similarity(texts.tokens[:, :, None], images.patches[:, None], dim=-1)
    assert_close(PACL().align(images, texts), expected * texts.mask[..., None])


def test_temperature_is_fixed_unless_learned() -> None:
    assert not any(p.requires_grad for p in PACL().parameters())
    assert all(p.requires_grad for p in PACL(learn_temperature=True).parameters())
