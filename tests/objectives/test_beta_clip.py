"""Tests of beta-CLIP against loops that implement its equations in Python floats, and against torch's layers.

They also check the soft targets, that negatives are pooled by the text with which they are scored, and what `pooling:
own` leaks.
"""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.testing import assert_close

from patchword import Images, Texts, contrast
from patchword.bench.plain_parts import beta_targets
from patchword.objectives import CLIP, BetaCLIP
from patchword.ops import normalize
from tests.objectives.test_flair import dot, linear
from tests.objectives.test_pacl import unit
from tests.objectives.test_sparc import cos
from tests.objectives.variants import DIM, build, gradients, pairs

Vector = list[float]
K = 3


def shaken(**options: Any) -> BetaCLIP:
    """BetaCLIP with parameters that are sines of squares, so that each of them affects the result."""
    objective = BetaCLIP(**{"heads": 2, "temperature": 0.2} | options)
    objective.build(DIM)
    objective.double()
    start = 0
    with torch.no_grad():
        for name, parameter in sorted(objective.named_parameters()):
            if not name.startswith(("scale", "conditioned_scale")):
                places = torch.arange(start, start + parameter.numel(), dtype=torch.float64)
                parameter.copy_(places.square().mul(1.7).sin().reshape(parameter.shape))
                start += parameter.numel()
        objective.conditioned_scale.log.fill_(math.log(3.0))
    return objective


def several(batch: int = 4, seed: int = 0) -> tuple[Images, Texts]:
    """Images with K texts each."""
    return pairs(batch, dtype=torch.float64, seed=seed)[0], pairs(K * batch, dtype=torch.float64, seed=seed + 1)[1]


def pool(objective: BetaCLIP, question: Vector, patches: list[Vector]) -> tuple[Vector, Vector]:
    """v of one image and one text, and the weights over patches averaged over heads: equations (a) and (b)."""
    query = linear(objective.query, unit(question))
    keys = [linear(objective.key, unit(p)) for p in patches]
    values = [linear(objective.value, unit(p)) for p in patches]
    width = DIM // objective.heads
    found, mean = [], [0.0] * len(patches)
    for start in range(0, DIM, width):
        own = slice(start, start + width)
        e = [math.exp(dot(query[own], key[own]) / math.sqrt(width)) for key in keys]
        a = [x / sum(e) for x in e]
        found += [sum(w * value[d] for w, value in zip(a, values, strict=True)) for d in range(start, start + width)]
        mean = [m + w / objective.heads for m, w in zip(mean, a, strict=True)]
    o = linear(objective.output, found)
    center = sum(o) / DIM
    spread = math.sqrt(sum((x - center) ** 2 for x in o) / DIM + 1e-5)
    scaled = zip(o, objective.norm.weight.tolist(), objective.norm.bias.tolist(), strict=True)
    hidden = linear(objective.expand, [(x - center) / spread * w + b for x, w, b in scaled])
    change = linear(objective.contract, [h / (1 + math.exp(-1.702 * h)) for h in hidden])
    return [x + y for x, y in zip(o, change, strict=True)], mean


def soft_cross_entropy(candidates: dict[Any, float], target: dict[Any, float]) -> float:
    """- sum of the normalized targets times the logarithm of the softmax."""
    total = math.log(sum(math.exp(z) for z in candidates.values()))
    return sum(w * (total - candidates[key]) for key, w in target.items()) / sum(target.values())


def conditioned_loop(objective: BetaCLIP, images: Images, texts: Texts) -> float:
    """L_t, computed one text at a time."""
    patches, t, k = images.patches.tolist(), texts.pooled.tolist(), objective.conditioned_scale().item()
    each = len(t) // len(patches)
    v = [[pool(objective, question, image)[0] for question in t] for image in patches]
    loss = 0.0
    for j in range(len(t)):
        b = j // each
        own = range(b * each, b * each + each)
        target = {m: 1.0 if m == j else objective.beta for m in own}
        if objective.pooling == "own":
            vector = {m: k * cos(v[b][j], t[m]) for m in range(len(t))}
            text = {m: k * cos(v[m // each][m], t[j]) for m in range(len(t))}
        else:
            vector = {m: k * cos(v[b][j if m in own else m], t[m]) for m in range(len(t))}
            text = {m: k * cos(v[b][m], t[j]) for m in own}
            text |= {("image", i): k * cos(v[i][j], t[j]) for i in range(len(patches)) if i != b}
        loss += (soft_cross_entropy(vector, target) + soft_cross_entropy(text, target)) / 2
    return loss / len(t)


def binary_loop(objective: BetaCLIP, images: Images, texts: Texts) -> float:
    """L_t of (h), one vector and one text at a time."""
    patches, t, k = images.patches.tolist(), texts.pooled.tolist(), objective.conditioned_scale().item()
    each = len(t) // len(patches)
    v = [[pool(objective, question, image)[0] for question in t] for image in patches]
    loss = 0.0
    for j in range(len(t)):
        b = j // each
        for m in range(len(t)):
            right = m // each == b
            vector = v[b][j] if right or objective.pooling == "own" else v[b][m]
            z = k * cos(vector, t[m])
            weight = objective.beta if right and m != j else 1.0
            loss += weight * math.log1p(math.exp(-z if right else z))
    return loss / len(t) ** 2


@pytest.mark.parametrize("pooling", ["pairwise", "own"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("heads", [1, 4])
def test_equals_loop(heads: int, beta: float, pooling: Any) -> None:
    """The conditioned term, scores and maps equal the loop, with one text and with three texts for each image."""
    objective = shaken(heads=heads, beta=beta, pooling=pooling)
    for images, texts in (pairs(dtype=torch.float64), several()):
        found = objective(images, texts)["text_conditioned"].item()
        assert found == pytest.approx(conditioned_loop(objective, images, texts), abs=1e-10)
    images, texts = pairs(dtype=torch.float64)
    patches, t = images.patches.tolist(), texts.pooled.tolist()
    scores = [[cos(pool(objective, y, image)[0], y) for y in t] for image in patches]  # pairwise in any case
    assert_close(objective.score(images, texts), torch.tensor(scores, dtype=torch.float64), atol=1e-10, rtol=0)
    rows = objective.align(images, texts)
    for b, words in enumerate(texts.tokens.tolist()):
        for n, word in enumerate(words):
            expected = pool(objective, word, patches[b])[1] if texts.mask[b, n] else [0.0] * 6
            assert rows[b, n].tolist() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("pooling", ["pairwise", "own"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_binary_cross_entropy_equals_loop(beta: float, pooling: Any) -> None:
    """With `loss: bce` every vector is compared with every text on its own; with one or three texts of an image."""
    objective = shaken(loss="bce", beta=beta, pooling=pooling)
    for images, texts in (pairs(dtype=torch.float64), several()):
        found = objective(images, texts)["text_conditioned"].item()
        assert found == pytest.approx(binary_loop(objective, images, texts), abs=1e-10)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_binary_cross_entropy_of_own_vectors_is_torchs(beta: float) -> None:
    """Loss and gradients equal those of torch's weighted loss on the matrix of all vectors and texts, as in the code.

    Targets are 1 for all texts of the vector's image. The weight beta is that of the texts that have not pooled it.
    """
    objective, (images, texts) = shaken(loss="bce", beta=beta, pooling="own", global_weight=0.0), several()

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.objective = objective

        def forward(self, images: Images, texts: Texts) -> dict[str, Tensor]:
            t = normalize(texts.pooled)
            v = normalize(objective._pool(objective._keys_and_values(images), t.unflatten(0, (-1, K)))).flatten(0, 1)
            place = torch.arange(len(t))
            right = (place[:, None] // K == place // K).double()
            weight = torch.where((right > 0) & (place[:, None] != place), beta, 1.0)
            loss = binary_cross_entropy_with_logits(objective.conditioned_scale() * v @ t.T, right, weight)
            return {"loss": loss + 0 * objective.scale()}

    assert_close(Plain()(images, texts)["loss"], objective(images, texts)["text_conditioned"])
    found = {name.removeprefix("objective."): x for name, x in gradients(Plain(), images, texts).items()}
    assert_close(found, gradients(objective, images, texts))


# The loop's results for `regular()` with beta 0.5 and the parameters of `shaken`, with one and with K texts.
GOLDEN = {
    ("pairwise", 1): 0.4931086975910731,
    ("own", 1): 0.4509360030080136,
    ("pairwise", K): 1.8127346598744178,
    ("own", K): 2.077494546757783,
}


# Those of the loop for `loss: bce`.
BINARY_GOLDEN = {
    ("pairwise", 1): 0.736421418667887,
    ("own", 1): 0.7253897438370712,
    ("pairwise", K): 0.6614116625639214,
    ("own", K): 0.6803727252729063,
}


def sines(*shape: int, start: int) -> Tensor:
    """Sines of squares, which do not depend on a random generator."""
    places = torch.arange(start, start + math.prod(shape), dtype=torch.float64)
    return places.square().mul(0.9).sin().reshape(shape)


def regular(each: int) -> tuple[Images, Texts]:
    """Two images with `each` texts, whose embeddings are `sines`."""
    images = Images(sines(2, DIM, start=1), sines(2, 4, DIM, start=100), (2, 2))
    texts = Texts(sines(2 * each, DIM, start=300), sines(2 * each, 2, DIM, start=500), torch.ones(2 * each, 2).bool())
    return images, texts


@pytest.mark.parametrize(("pooling", "each"), GOLDEN)
def test_equals_golden(pooling: Any, each: int) -> None:
    """The conditioned term of embeddings and parameters that do not depend on a random generator."""
    found = shaken(pooling=pooling)(*regular(each))["text_conditioned"].item()
    assert found == pytest.approx(GOLDEN[pooling, each], abs=1e-10)


@pytest.mark.parametrize(("pooling", "each"), BINARY_GOLDEN)
def test_binary_cross_entropy_equals_golden(pooling: Any, each: int) -> None:
    """The conditioned term with `loss: bce` on the same embeddings and parameters."""
    found = shaken(pooling=pooling, loss="bce")(*regular(each))["text_conditioned"].item()
    assert found == pytest.approx(BINARY_GOLDEN[pooling, each], abs=1e-10)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_gradients_equal_those_of_the_matrix_of_all_logits(beta: float) -> None:
    """With K texts for each image, loss and gradients equal those of the formula that stores every logit."""
    objective, (images, texts) = shaken(beta=beta, global_weight=0.0), several()

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.objective = objective

        def forward(self, images: Images, texts: Texts) -> dict[str, Tensor]:
            t = normalize(texts.pooled)
            v = normalize(objective._pool(objective._keys_and_values(images), t))
            loss = beta_targets(objective.conditioned_scale() * v @ t.T, beta)
            return {"loss": loss + 0 * objective.scale()}

    assert_close(Plain()(images, texts)["loss"], objective(images, texts)["text_conditioned"])
    found = {name.removeprefix("objective."): x for name, x in gradients(Plain(), images, texts).items()}
    assert_close(found, gradients(objective, images, texts))


@pytest.mark.parametrize("heads", [1, 2, 8])
def test_pools_as_torch_attention_does(heads: int) -> None:
    """The layers of the authors' code: torch's attention, a norm, and two linear layers around CLIP's activation."""
    images, texts = pairs(dtype=torch.float64)
    objective = shaken(heads=heads)
    attention = nn.MultiheadAttention(DIM, heads, batch_first=True).double()
    maps = [objective.query, objective.key, objective.value]
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([m.weight for m in maps]))
        attention.in_proj_bias.copy_(torch.cat([m.bias for m in maps]))
        attention.out_proj.load_state_dict(objective.output.state_dict())
    t, p = nn.functional.normalize(texts.pooled, dim=-1), nn.functional.normalize(images.patches, dim=-1)
    o, _ = attention(t.expand(5, -1, -1), p, p)
    hidden = objective.expand(objective.norm(o))
    v = o + objective.contract(hidden * torch.sigmoid(1.702 * hidden))
    assert_close(objective.score(images, texts), torch.cosine_similarity(v, t.expand(5, -1, -1), dim=-1))
    _, weights = attention(nn.functional.normalize(texts.tokens, dim=-1), p, p)
    assert_close(objective.align(images, texts), weights * texts.mask[..., None])


def test_starts_as_torch_attention_does() -> None:
    """The initial values are those of the layers that the authors use, and both temperatures are CLIP's."""
    torch.manual_seed(0)
    objective = BetaCLIP()
    objective.build(128)
    attention = nn.MultiheadAttention(128, 8)
    for layer in (objective.query, objective.key, objective.value):
        assert layer.weight.std().item() == pytest.approx(attention.in_proj_weight.std().item(), rel=5e-2)
        assert layer.bias.abs().max() == 0
    assert objective.output.weight.std().item() == pytest.approx(attention.out_proj.weight.std().item(), rel=5e-2)
    assert objective.output.bias.abs().max() == 0
    assert objective.scale().item() == objective.conditioned_scale().item() == pytest.approx(1 / 0.07)
    assert objective.scale.log is not objective.conditioned_scale.log


@pytest.mark.parametrize("pooling", ["pairwise", "own"])
@pytest.mark.parametrize("loss", ["ce", "bce"])
def test_beta_acts_only_on_an_images_other_texts(loss: Any, pooling: Any) -> None:
    """Beta changes the loss if images have several texts, and changes nothing if they have one."""
    for (images, texts), same in ((pairs(dtype=torch.float64), True), (several(), False)):
        terms = (shaken(beta=beta, pooling=pooling, loss=loss)(images, texts) for beta in (0.1, 0.9))
        low, high = (term["text_conditioned"] for term in terms)
        assert torch.equal(low, high) == same


def test_beta_would_have_no_effect_if_siblings_were_scored_pairwise() -> None:
    """The mean over k of the targets w is uniform for every beta, so one vector of an image cannot have soft targets.

    This is why an image's own texts are compared with all vectors that they pool.
    """
    for beta in (0.0, 0.5, 1.0):
        w = (beta + (1 - beta) * torch.eye(K)) / (1 + (K - 1) * beta)
        assert_close(w.mean(0), torch.full((K,), 1 / K))


def test_an_images_other_texts_remain_in_the_denominator() -> None:
    """One image with its K texts has a loss, unlike in InfoNCE, where they are no candidates."""
    images, texts = several()
    for pooling in ("pairwise", "own"):
        terms = shaken(pooling=pooling)(images[:1], texts[:K])
        assert terms["text_conditioned"] > 0.1
        assert terms["global"] == 0


def staring(pooling: Any) -> BetaCLIP:
    """A pooler that returns the patch that is most similar to the text."""
    objective = BetaCLIP(pooling=pooling, heads=1)
    objective.build(DIM)
    with torch.no_grad():
        for layer, factor in ((objective.query, 100.0), (objective.key, 1.0), (objective.value, 1.0)):
            layer.weight.copy_(factor * torch.eye(DIM))
        objective.output.weight.copy_(torch.eye(DIM))
        objective.contract.weight.zero_()
        objective.contract.bias.zero_()
    return objective


def test_own_pooling_beats_chance_on_images_that_are_all_the_same() -> None:
    """If all images are equal, a loss below log B can only come from the leak."""
    images, texts = pairs(batch=16, grid=(6, 6))
    same = replace(images, patches=images.patches[:1].expand(16, -1, -1))
    pairwise, own = (staring(pooling)(same, texts)["text_conditioned"] for pooling in ("pairwise", "own"))
    assert own < 0.7 * math.log(16) < math.log(16) - 1e-5 < pairwise


def test_equal_images_get_equal_scores_whatever_their_own_texts() -> None:
    """Scores are pairwise also if the loss pools with the images' own texts."""
    images, texts = pairs(dtype=torch.float64)
    same = replace(images, patches=images.patches[:1].expand(5, -1, -1))
    for pooling in ("pairwise", "own"):
        scores = shaken(pooling=pooling).score(same, texts)
        assert_close(scores, scores[:1].expand(5, -1))


def test_keys_and_values_are_made_once_per_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values are not computed once per pair or once per tile."""
    seen: list[int] = []
    objective, (images, texts) = shaken(), several()
    for layer in (objective.key, objective.value):
        layer.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    monkeypatch.setattr(contrast, "BUDGET", 1)
    gradients(objective, images, texts)
    assert seen == [4, 4]


def test_patches_and_texts_are_normalized_before_they_are_pooled() -> None:
    """The lengths of patches and texts change nothing."""
    objective, (images, texts) = shaken(), several()
    longer = replace(images, patches=images.patches * torch.arange(1.0, 7.0)[:, None])
    assert_close(objective(longer, replace(texts, pooled=3 * texts.pooled)), objective(images, texts))


def test_global_texts_are_all_or_the_first() -> None:
    """The global term is CLIP's loss on all texts, or on the first text of each image."""
    images, texts = several()
    expected = CLIP().double()(images, texts)["global"], CLIP().double()(images, texts[::K])["global"]
    options = ({}, {"global_texts": "first"})
    assert_close(tuple(shaken(temperature=0.07, **o)(images, texts)["global"] for o in options), expected)


def test_weights_scale_their_own_term() -> None:
    """Each weight changes its own term only."""
    images, texts = pairs(dtype=torch.float64)
    before, after = shaken()(images, texts), shaken(text_conditioned_weight=2.0, global_weight=0.1)(images, texts)
    assert_close(after, {"text_conditioned": 2 * before["text_conditioned"], "global": 0.1 * before["global"]})


def test_score_ignores_the_tokens_and_the_global_image() -> None:
    """Scores depend on patches and on the global text vector only."""
    images, texts = pairs()
    objective = build("BetaCLIP")
    other = replace(texts, tokens=texts.tokens * 0 + 1)
    assert torch.equal(objective.score(replace(images, pooled=-images.pooled), other), objective.score(images, texts))


def test_options_out_of_range_are_refused() -> None:
    """Beta lies in [0, 1], and heads divide the width."""
    for beta in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"beta must lie in \[0, 1\]"):
            BetaCLIP(beta=beta)
    with pytest.raises(ValueError, match="heads must be 1 or more"):
        BetaCLIP(heads=0)
    with pytest.raises(ValueError, match=r"heads must divide embed_dim: 12 .* 8"):
        BetaCLIP().build(12)
