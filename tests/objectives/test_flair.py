"""Tests of FLAIR against a loop that implements its equations and against `torch.nn.MultiheadAttention`.

They also check that images are not pooled with their own texts, that there is an empty key, and that keys and values
are computed once.
"""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from patchword import Images, contrast
from patchword.objectives import FLAIR, SigLIP
from tests.objectives.test_siglip import loop as sigmoid_loop
from tests.objectives.test_sparc import cos
from tests.objectives.variants import DIM, build, gradients, pairs

Vector = list[float]


def shaken(heads: int = 8, temperature: float = 0.2, bias: float = -1.5) -> FLAIR:
    """FLAIR with random parameters, including biases and layer norms, so that each of them affects the result."""
    objective = FLAIR(heads=heads, temperature=temperature, bias=bias)
    objective.build(DIM)
    objective.double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in (objective.query, objective.key, objective.value, objective.output):
            for parameter in module.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return objective


def dot(x: Vector, y: Vector) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True))


def linear(module: nn.Linear, x: Vector) -> Vector:
    return [dot(row, x) + b for row, b in zip(module.weight.tolist(), module.bias.tolist(), strict=True)]


def norm_then_linear(module: nn.Sequential, x: Vector) -> Vector:
    norm, projection = module
    mean = sum(x) / len(x)
    spread = math.sqrt(sum((a - mean) ** 2 for a in x) / len(x) + 1e-5)
    scaled = zip(x, norm.weight.tolist(), norm.bias.tolist(), strict=True)
    return linear(projection, [(a - mean) / spread * w + b for a, w, b in scaled])


def ask(objective: FLAIR, question: Vector, patches: list[Vector]) -> tuple[Vector, Vector]:
    """v_ij of one image and one query, and the weights over patches averaged over heads."""
    query = norm_then_linear(objective.query, question)
    keys = [norm_then_linear(objective.key, p) for p in patches]
    values = [norm_then_linear(objective.value, p) for p in patches]
    width = len(query) // objective.heads
    answer, mean = [], [0.0] * len(patches)
    for start in range(0, len(query), width):
        own = slice(start, start + width)
        exps = [math.exp(dot(query[own], key[own]) / math.sqrt(width)) for key in keys]
        weights = [e / (1 + sum(exps)) for e in exps]
        answer += [sum(w * value[d] for w, value in zip(weights, values, strict=True)) for d in range(len(query))[own]]
        mean = [m + w / objective.heads for m, w in zip(mean, weights, strict=True)]
    return linear(objective.output, answer), mean


@pytest.mark.parametrize("heads", [1, 2, 4, 8])
@pytest.mark.parametrize("seed", range(2))
def test_equals_loop(seed: int, heads: int) -> None:
    """Scores, both terms of the loss and the map equal the loop, which computes one pair at a time in Python floats."""
    images, texts = pairs(seed=seed, dtype=torch.float64)
    objective = shaken(heads)
    patches, questions = images.patches.tolist(), texts.pooled.tolist()
    scores = [[cos(ask(objective, t, p)[0], t) for t in questions] for p in patches]
    assert_close(objective.score(images, texts), torch.tensor(scores, dtype=torch.float64), atol=1e-10, rtol=0)

    k = objective.scale().item()
    signs = [[1 if i == j else -1 for j in range(5)] for i in range(5)]
    asked = [math.log(1 + math.exp(-signs[i][j] * (k * scores[i][j] - 1.5))) for i in range(5) for j in range(5)]
    terms = objective(images, texts)
    assert terms["text_conditioned"].item() == pytest.approx(sum(asked) / 5 / 2, abs=1e-10)
    whole = sigmoid_loop(images.pooled.tolist(), questions, k, -1.5)
    assert terms["global"].item() == pytest.approx(whole / 2, abs=1e-10)

    rows = objective.align(images, texts)
    for b, words in enumerate(texts.tokens.tolist()):
        for j, word in enumerate(words):
            expected = ask(objective, word, patches[b])[1] if texts.mask[b, j] else [0.0] * 6
            assert rows[b, j].tolist() == pytest.approx(expected, abs=1e-10)


def peer(objective: FLAIR) -> nn.MultiheadAttention:
    """Torch's attention with its own zero key, holding the objective's parameters."""
    attention = nn.MultiheadAttention(DIM, objective.heads, batch_first=True, add_zero_attn=True).double()
    maps = [objective.query[1], objective.key[1], objective.value[1]]
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([m.weight for m in maps]))
        attention.in_proj_bias.copy_(torch.cat([m.bias for m in maps]))
        attention.out_proj.load_state_dict(objective.output.state_dict())
    return attention


@pytest.mark.parametrize("heads", [1, 2, 8])
def test_pools_as_torch_attention_does(heads: int) -> None:
    """The layer that the authors' code uses: scores of all pairs, and the map."""
    images, texts = pairs(dtype=torch.float64)
    objective = shaken(heads)
    attention, (query, _), (key, _), (value, _) = peer(objective), objective.query, objective.key, objective.value
    questions = query(texts.pooled).expand(5, -1, -1)
    pooled, _ = attention(questions, key(images.patches), value(images.patches))
    expected = torch.cosine_similarity(pooled, texts.pooled.expand(5, -1, -1), dim=-1)
    assert_close(objective.score(images, texts), expected)
    _, weights = attention(query(texts.tokens), key(images.patches), value(images.patches))
    assert_close(objective.align(images, texts), weights[..., :-1] * texts.mask[..., None])


def test_starts_as_torch_attention_does() -> None:
    torch.manual_seed(0)
    objective = FLAIR()
    objective.build(128)
    attention = nn.MultiheadAttention(128, 8)
    for name in ("query", "key", "value"):
        _, projection = getattr(objective, name)
        assert projection.weight.std().item() == pytest.approx(attention.in_proj_weight.std().item(), rel=5e-2)
        assert projection.bias.abs().max() == 0
    assert objective.output.weight.std().item() == pytest.approx(attention.out_proj.weight.std().item(), rel=5e-2)
    assert objective.output.bias.abs().max() == 0
    assert (objective.scale().item(), objective.bias.item()) == (pytest.approx(10), -10)


def test_keys_and_values_are_made_once_per_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values are not computed once per pair or once per tile."""
    seen: list[int] = []
    objective, (images, texts) = shaken(), pairs(dtype=torch.float64)
    for module in (objective.key, objective.value):
        module.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    monkeypatch.setattr(contrast, "BUDGET", 1)
    gradients(objective, images, texts)
    assert seen == [5, 5]


def test_equal_images_get_equal_scores_whatever_their_own_texts() -> None:
    """An image is pooled by the text that is scored, so its own text cannot affect the score."""
    images, texts = pairs(dtype=torch.float64)
    same = Images(images.pooled, images.patches[:1].expand(5, -1, -1), images.grid)
    scores = shaken().score(same, texts)
    assert_close(scores, scores[:1].expand(5, -1))
    own = ask_own(shaken(), same, texts.pooled)  # pooling with the image's own text would fail
    assert (own - own[:1]).abs().max() > 0.1


def ask_own(objective: FLAIR, images: Images, texts: Tensor) -> Tensor:
    """Scores with a mistake: each image is pooled with its own text and then compared with all texts."""
    pooled = [ask(objective, t, p)[0] for t, p in zip(texts.tolist(), images.patches.tolist(), strict=True)]
    return torch.tensor([[cos(v, t) for t in texts.tolist()] for v in pooled])


def test_a_text_may_look_at_nothing() -> None:
    """A row sums to less if the empty key has more weight. If all keys are zero, all weights are equal."""
    objective, (images, texts) = shaken(), pairs(dtype=torch.float64)
    with torch.no_grad():
        objective.key[1].weight.zero_()
    sums = []
    for push in (0.0, 1.0, 3.0):  # each head has width 1: keys against the query's sign
        question = objective.query(texts.tokens[:1, :1]).flatten()
        with torch.no_grad():
            objective.key[1].bias.copy_(-push * question.sign())
        sums.append(objective.align(images[:1], texts[:1])[0, 0].sum().item())
    assert sums[0] == pytest.approx(6 / 7)
    assert all(later < earlier for earlier, later in pairwise(sums))


def test_global_term_is_half_of_siglip() -> None:
    images, texts = pairs()
    expected = SigLIP()(images, texts)["global"] / 2
    assert_close(build("FLAIR")(images, texts)["global"], expected)


def test_weights_scale_their_own_term() -> None:
    images, texts = pairs()
    one, other = FLAIR(), FLAIR(text_conditioned_weight=2.0, global_weight=0.1)
    for objective in (one, other):
        objective.build(DIM)
    other.load_state_dict(one.state_dict())
    before, after = one(images, texts), other(images, texts)
    assert_close(after, {"text_conditioned": 4 * before["text_conditioned"], "global": before["global"] / 5})


def test_score_ignores_the_tokens_and_the_global_image() -> None:
    images, texts = pairs()
    objective = build("FLAIR")
    other = replace(texts, tokens=texts.tokens * 0 + 1)
    assert torch.equal(objective.score(replace(images, pooled=-images.pooled), other), objective.score(images, texts))


def test_heads_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="heads must be 1 or more"):
        FLAIR(heads=0)
    with pytest.raises(ValueError, match=r"heads must divide embed_dim: 12 .* 8"):
        FLAIR().build(12)
