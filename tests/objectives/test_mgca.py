"""Tests of MGCA against golden values and loops in Python floats, and of its gradients against the plain formula.

They detect padded words among the negatives, gradients through weights and assignments, and divisions by zero in
Sinkhorn.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from patchword import Images, Texts
from patchword.objectives import MGCA
from patchword.objectives.mgca import contrast, sinkhorn
from patchword.ops import normalize
from tests.golden import GOLDEN, entries, features
from tests.objectives.test_clip import loop as clip_loop
from tests.objectives.test_sparc import cos
from tests.objectives.variants import DIM, build, gradients, pairs

Vector = list[float]
TEMPERATURES = {"scale": 0.07, "local_scale": 0.1, "prototype_scale": 0.2}


def exactly(objective: MGCA, dim: int = DIM) -> MGCA:
    """`objective` in float64, with exactly the temperatures of the code."""
    torch.manual_seed(0)
    objective.build(dim)
    objective.double()
    with torch.no_grad():
        for name, temperature in TEMPERATURES.items():
            getattr(objective, name).log.fill_(-math.log(temperature))
    return objective


def case_tensor(case: str, name: str) -> Tensor:
    return torch.tensor(GOLDEN["cases"][case][name], dtype=torch.float64)


# Golden values were computed with plain attention.


@pytest.mark.parametrize("entry", entries("mgca_local"))
def test_local_loss_equals_golden(entry: dict[str, Any]) -> None:
    """Losses equal golden values without padded words, and, as in the code, with padded words as negatives."""
    params, expected, case = entry["params"], entry["expected"], entry["case"]
    images, texts = features(case)
    objective = MGCA(attention="plain", token_weights="uniform", normalize_attended=params["renorm_patch_out"])
    exactly(objective, images.patches.shape[-1])
    t, v, mask = normalize(texts.tokens), normalize(images.patches), texts.mask
    if params["colmask"]:
        words = mask.double() / mask.sum(1, keepdim=True)
        patches = torch.full(v.shape[:2], 1 / v.shape[1], dtype=torch.float64)
        assert objective.local_loss(images, texts).item() == pytest.approx(expected["loss"], abs=1e-10)
    else:
        words, patches = case_tensor(case, "word_weights"), case_tensor(case, "patch_weights")
    negatives = mask if params["colmask"] else torch.ones_like(mask)
    a = objective.align(images, Texts(texts.pooled, texts.tokens, negatives))
    word = contrast(t, normalize(objective.words.read(a, v)), negatives, words, objective.local_scale())
    every = torch.ones(v.shape[:2], dtype=torch.bool)
    patch = contrast(v, objective.read_words(t, v, mask), every, patches, objective.local_scale())
    golden = [expected["loss_word"], expected["loss_patch"]]
    assert [word.item(), patch.item()] == pytest.approx(golden, abs=1e-10)


def with_golden_prototypes(case: str, **switches: Any) -> MGCA:
    prototypes = case_tensor(case, "prototypes")
    objective = exactly(MGCA(prototypes=len(prototypes), **switches), prototypes.shape[-1])
    with torch.no_grad():
        objective.centers.copy_(3 * prototypes)  # their length does not matter
    return objective


@pytest.mark.parametrize("entry", entries("mgca_proto"))
def test_prototype_loss_equals_golden(entry: dict[str, Any]) -> None:
    params, expected = entry["params"], entry["expected"]
    objective = with_golden_prototypes(entry["case"], epsilon=params["eps"], sinkhorn_iterations=params["iters"])
    images, texts = features(entry["case"])
    assert objective.prototype_loss(images.pooled, texts.pooled).item() == pytest.approx(expected["loss"], abs=1e-10)
    for name, pooled in (("q_img", images.pooled), ("q_txt", texts.pooled)):
        q = objective.assign(normalize(pooled) @ normalize(objective.centers).T)
        assert_close(q, torch.tensor(expected[name], dtype=torch.float64), atol=1e-10, rtol=0)


@pytest.mark.parametrize("entry", entries("mgca_total"))
def test_total_equals_golden(entry: dict[str, Any]) -> None:
    """The code sums both directions of the global loss, which is `global_weight` 2 here."""
    expected = entry["expected"]
    objective = with_golden_prototypes(entry["case"], global_weight=2.0, attention="plain", token_weights="uniform")
    terms = objective(*features(entry["case"]))
    for name, golden in (("global", "ita_sum"), ("local", "local"), ("prototype", "proto")):
        assert terms[name].item() == pytest.approx(expected[golden], abs=1e-10)
    assert sum(terms.values()).item() == pytest.approx(expected["loss"], abs=1e-10)


# Loops in Python floats.


def dot(x: Vector, y: Vector) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True))


def unit(x: Vector) -> Vector:
    return [a / math.hypot(*x) for a in x]


def times(matrix: list[Vector], x: Vector) -> Vector:
    return [dot(row, x) for row in matrix]


def quantile(values: Vector, q: float) -> float:
    """The quantile q, interpolated linearly."""
    values, place = sorted(values), q * (len(values) - 1)
    low, high = math.floor(place), math.ceil(place)
    return values[low] + (values[high] - values[low]) * (place - low)


def attend(x: Vector, keys: list[Vector], matrices: dict[str, list[Vector]] | None) -> tuple[Vector, Vector]:
    """The attention output and weights of x over `keys`, with four matrices or without."""
    if matrices is None:
        logits, values = [dot(x, key) / 0.1 for key in keys], keys
    else:
        query = times(matrices["query"], x)
        logits = [dot(query, times(matrices["key"], key)) / math.sqrt(len(x)) for key in keys]
        values = [times(matrices["value"], key) for key in keys]
    total = sum(math.exp(z) for z in logits)
    weights = [math.exp(z) / total for z in logits]
    read = [dot(weights, column) for column in map(list, zip(*values, strict=True))]
    return (read if matrices is None else times(matrices["output"], read)), weights


def side_loop(
    own: list[Vector], other: list[Vector], pooled: Vector, matrices: Any, switches: dict[str, Any], norm: bool
) -> float:
    """L_word or L_patch of one pair."""
    own, other = [unit(x) for x in own], [unit(x) for x in other]
    read = [attend(x, other, matrices)[0] for x in own]
    if norm:
        read = [unit(o) for o in read]
    c = [cos(pooled, x) for x in own]
    if switches.get("token_weights") == "uniform":
        c = [0.0] * len(c)
    low, high = quantile(c, 0.1), quantile(c, 0.9)
    w = [math.exp(min(max(x, low), high) / 0.1) for x in c]
    loss = 0.0
    for n in range(len(own)):
        right = math.exp(dot(own[n], read[n]) / 0.1)
        rows = sum(math.exp(dot(own[n], o) / 0.1) for o in read)
        columns = sum(math.exp(dot(x, read[n]) / 0.1) for x in own)
        loss -= w[n] / sum(w) * (math.log(right / rows) + math.log(right / columns)) / 2
    return loss


def matrices_of(reader: nn.Module) -> dict[str, list[Vector]] | None:
    found = {name.removesuffix(".weight"): x.tolist() for name, x in reader.named_parameters()}
    return found or None


def local_loop(objective: MGCA, images: Images, texts: Texts, switches: dict[str, Any]) -> float:
    """L_word + L_patch with only the real words, computed one pair at a time."""
    words, patches = matrices_of(objective.words), matrices_of(objective.patches)
    total = 0.0
    for b in range(len(images)):
        t, v = texts.tokens[b][texts.mask[b]].tolist(), images.patches[b].tolist()
        total += side_loop(t, v, texts.pooled[b].tolist(), words, switches, True)
        norm = switches.get("normalize_attended", True)
        total += side_loop(v, t, images.pooled[b].tolist(), patches, switches, norm)
    return total / len(images)


SWITCHES: list[dict[str, Any]] = [
    {},
    {"token_weights": "uniform"},
    {"normalize_attended": False},
    {"attention": "plain"},
    {"attention": "plain", "token_weights": "uniform"},
    {"attention": "plain", "normalize_attended": False},
]


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
@pytest.mark.parametrize("seed", range(2))
def test_local_loss_and_map_equal_loop(seed: int, switches: dict[str, Any]) -> None:
    images, texts = pairs(seed=seed, dtype=torch.float64)
    objective = exactly(MGCA(prototypes=3, **switches))
    expected = local_loop(objective, images, texts, switches)
    assert objective(images, texts)["local"].item() == pytest.approx(expected, abs=1e-10)
    rows = objective.align(images, texts)
    for b, j in texts.mask.nonzero().tolist():
        patches = [unit(p) for p in images.patches[b].tolist()]
        _, weights = attend(unit(texts.tokens[b, j].tolist()), patches, matrices_of(objective.words))
        assert rows[b, j].tolist() == pytest.approx(weights, abs=1e-10)


def sinkhorn_loop(similarity: list[Vector], epsilon: float, iterations: int) -> list[Vector]:
    """Sinkhorn in its multiplicative form: columns and rows are normalized in turn."""
    q = [[math.exp(s / epsilon) for s in row] for row in similarity]
    samples, prototypes = len(q), len(q[0])
    for _ in range(iterations):
        columns = [sum(row[p] for row in q) for p in range(prototypes)]
        q = [[x / columns[p] / prototypes for p, x in enumerate(row)] for row in q]
        q = [[x / sum(row) / samples for x in row] for row in q]
    return [[x / sum(row) for x in row] for row in q]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("count", [1, 3, 11])
def test_other_terms_equal_loop(seed: int, count: int) -> None:
    """The prototype loss equals the loop with fewer and more prototypes than samples. The global loss is CLIP's."""
    images, texts = pairs(seed=seed, dtype=torch.float64)
    objective = exactly(MGCA(prototypes=count, epsilon=0.1, sinkhorn_iterations=2))
    centers, expected = objective.centers.tolist(), 0.0
    x, y = ([[cos(z, c) for c in centers] for z in side.pooled.tolist()] for side in (images, texts))
    for giver, taker in ((x, y), (y, x)):
        q = sinkhorn_loop(giver, 0.1, 2)
        for shares, row in zip(q, taker, strict=True):
            total = sum(math.exp(s / 0.2) for s in row)
            expected -= sum(share * math.log(math.exp(s / 0.2) / total) for share, s in zip(shares, row, strict=True))
    terms = objective(images, texts)
    assert terms["prototype"].item() == pytest.approx(expected / 10, abs=1e-10)
    assert terms["global"].item() == pytest.approx(clip_loop(images, texts, 1 / 0.07), abs=1e-10)


# Gradients are compared with autograd of the plain formula, in which some parts are detached.


def formula(objective: MGCA, images: Images, texts: Texts) -> Tensor:
    """The total loss of `objective`, computed in torch one pair at a time with only the real words."""
    k, k_local, k_prototype = objective.scale(), objective.local_scale(), objective.prototype_scale()
    x, y = (side.pooled / side.pooled.norm(dim=1, keepdim=True) for side in (images, texts))
    own = torch.arange(len(x))
    loss = (cross_entropy(k * x @ y.T, own) + cross_entropy(k * y @ x.T, own)) / 2
    centers = objective.centers / objective.centers.norm(dim=1, keepdim=True)
    for giver, taker in ((x, y), (y, x)):
        q = torch.tensor(sinkhorn_loop((giver @ centers.T).tolist(), 0.05, 3), dtype=torch.float64)
        loss = loss - (q * (k_prototype * taker @ centers.T).log_softmax(1)).sum() / len(x) / 2
    for b, mask in enumerate(texts.mask):
        t, v = texts.tokens[b][mask], images.patches[b]
        t, v = t / t.norm(dim=1, keepdim=True), v / v.norm(dim=1, keepdim=True)
        for reader, z, keys, pooled in ((objective.words, t, v, y[b]), (objective.patches, v, t, x[b])):
            if objective.attention == "plain":
                o = (k_local * z @ keys.T).softmax(1) @ keys
            else:
                q, key, value, output = (m.weight for m in (reader.query, reader.key, reader.value, reader.output))
                o = ((z @ q.T) @ (keys @ key.T).T / math.sqrt(DIM)).softmax(1) @ keys @ value.T @ output.T
            if reader is objective.words or objective.normalize_attended:
                o = o / o.norm(dim=1, keepdim=True)
            c = (z @ pooled).detach()
            c = c.clamp(c.quantile(0.1), c.quantile(0.9)) if objective.token_weights == "pooled" else 0 * c
            w, target = (k_local.detach() * c).softmax(0), torch.arange(len(z))
            for logits in (k_local * z @ o.T, k_local * o @ z.T):
                loss = loss + (w * cross_entropy(logits, target, reduction="none")).sum() / len(x) / 2
    return loss


@pytest.mark.parametrize("switches", [*SWITCHES, {"attention": "plain", "learn_temperatures": True}], ids=str)
def test_gradients_equal_those_of_the_formula(switches: dict[str, Any]) -> None:
    images, texts = pairs(dtype=torch.float64)
    objective = exactly(MGCA(prototypes=7, **switches))
    found = gradients(objective, images, texts)
    leaves = {"images.pooled": images.pooled, "images.patches": images.patches}
    leaves |= {"texts.pooled": texts.pooled, "texts.tokens": texts.tokens}
    leaves |= {n: p for n, p in objective.named_parameters() if p.requires_grad}
    loss = formula(objective, images, texts)
    assert_close(loss, torch.stack(list(objective(images, texts).values())).sum())
    expected = torch.autograd.grad(loss, list(leaves.values()))
    assert_close([found[name] for name in leaves], list(expected))


# Invariances of values and gradients.


def test_local_loss_never_looks_at_other_pairs_nor_at_padding() -> None:
    """The loss is the mean over pairs that are computed alone and without padding."""
    images, texts = pairs(dtype=torch.float64)
    objective = exactly(MGCA())
    alone = []
    for b, length in enumerate(texts.mask.sum(1).tolist()):
        text = Texts(texts.pooled[b : b + 1], texts.tokens[b : b + 1, :length], texts.mask[b : b + 1, :length])
        alone.append(objective(images[b : b + 1], text)["local"].item())
    assert objective(images, texts)["local"].item() == pytest.approx(sum(alone) / 5, abs=1e-12)


def test_deselected_words_are_neither_read_nor_negatives() -> None:
    """Masking a word in the middle of a caption is the same as removing it."""
    images, texts = pairs(dtype=torch.float64)
    objective, kept = exactly(MGCA()), torch.tensor([True, False, True, True])
    whole = Texts(texts.pooled, texts.tokens, texts.mask & kept)
    cut = Texts(texts.pooled, texts.tokens[:, kept], texts.mask[:, kept])
    assert_close(objective(images, whole)["local"], objective(images, cut)["local"])


def test_an_empty_caption_trains_no_patch() -> None:
    images, texts = pairs()
    texts = Texts(texts.pooled, texts.tokens, texts.mask & (torch.arange(5) != 2)[:, None])
    loss = build("MGCA")(images, texts)["local"]
    (gradient,) = torch.autograd.grad(loss, images.patches)
    assert (gradient[2] == 0).all()
    assert (gradient[[0, 1, 3, 4]].abs().sum((1, 2)) > 0).all()


def test_importance_is_clipped_and_has_no_gradient() -> None:
    """The most and the least important of eleven words get the weights of their neighbors."""
    objective = exactly(MGCA())
    pooled = torch.tensor([[1.0] + [0.0] * 7], dtype=torch.float64, requires_grad=True)
    angles = torch.linspace(0.1, 1.5, 11, dtype=torch.float64)
    local = torch.zeros(1, 12, 8, dtype=torch.float64)
    local[0, :11, 0], local[0, :11, 1] = angles.cos(), angles.sin()
    mask = torch.arange(12)[None] < 11
    w = objective.importance(pooled, local, mask)
    assert not w.requires_grad
    assert w.sum().item() == pytest.approx(1)
    assert w[0, 11] == 0
    assert w[0, 0].item() == pytest.approx(w[0, 1].item())
    assert w[0, 10].item() == pytest.approx(w[0, 9].item())
    assert (w[0, 1:9] > w[0, 2:10]).all()
    assert (w[0, 2] / w[0, 3]).log().item() == pytest.approx((angles[2].cos() - angles[3].cos()).item() / 0.1)


def test_sinkhorn_gives_every_prototype_its_share() -> None:
    """Rows sum to 1 after every iteration. Columns sum to N / K after convergence."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    for iterations in (1, 3):
        assert_close(sinkhorn(logits, iterations).sum(1), torch.ones(12).double())
    assert_close(sinkhorn(logits, 200).sum(0), torch.full((4,), 3.0).double())


def test_sinkhorn_survives_sharp_and_lonely_samples() -> None:
    """exp(1 / 0.001) overflows. A batch of one sample is assigned equally to all prototypes."""
    logits = torch.eye(3)[[0, 0, 1, 2]] / 0.001
    q = sinkhorn(logits, 3)
    assert q.isfinite().all()
    assert_close(q.sum(1), torch.ones(4))
    assert_close(sinkhorn(torch.randn(1, 500), 3), torch.full((1, 500), 1 / 500))


def test_prototypes_learn_along_the_sphere() -> None:
    """The length of prototypes does not affect the loss, so their gradient is orthogonal to them."""
    images, texts = pairs(dtype=torch.float64)
    objective = exactly(MGCA())
    found = gradients(objective, images, texts)["centers"]
    assert found.abs().max() > 0
    assert (found * objective.centers).sum(1).abs().max() < 1e-12


@pytest.mark.parametrize("dim", [8, 128])
def test_learned_attention_is_torch_attention_with_one_head(dim: int) -> None:
    """Outputs are those of torch's attention, and so is the standard deviation of initial values."""
    torch.manual_seed(0)
    objective = MGCA()
    objective.build(dim)
    attention = nn.MultiheadAttention(dim, 1, bias=False, batch_first=True)
    maps = [objective.words.query, objective.words.key, objective.words.value]
    fused = torch.cat([m.weight for m in maps])
    if dim > 100:
        assert fused.std().item() == pytest.approx(attention.in_proj_weight.std().item(), rel=2e-2)
        assert objective.words.output.weight.std().item() == pytest.approx(
            attention.out_proj.weight.std().item(), rel=2e-2
        )
        return
    with torch.no_grad():
        attention.in_proj_weight.copy_(fused)
        attention.out_proj.weight.copy_(objective.words.output.weight)
    images, texts = pairs()
    t, v = normalize(texts.tokens), normalize(images.patches)
    o, a = attention(t, v, v)
    rows = objective.align(images, texts)
    assert_close(rows, a * texts.mask[..., None])
    assert_close(objective.words.read(rows, v)[texts.mask], o[texts.mask])


def test_temperatures_are_kept_unless_learned() -> None:
    for learned in (False, True):
        objective = MGCA(learn_temperatures=learned)
        scales = [objective.scale, objective.local_scale, objective.prototype_scale]
        assert [1 / s().item() for s in scales] == pytest.approx(list(TEMPERATURES.values()), rel=1e-5)
        assert all(s.log.requires_grad == learned for s in scales)


def test_weights_scale_their_own_term() -> None:
    images, texts = pairs()
    one, other = MGCA(), MGCA(global_weight=2.0, local_weight=3.0, prototype_weight=0.5)
    for objective in (one, other):
        objective.build(DIM)
    other.load_state_dict(one.state_dict())
    factors = {"global": 2.0, "local": 3.0, "prototype": 0.5}
    assert_close(other(images, texts), {n: factors[n] * x for n, x in one(images, texts).items()})


@pytest.mark.parametrize("mistake", [{"prototypes": 0}, {"sinkhorn_iterations": 0}, {"epsilon": 0.0}], ids=str)
def test_numbers_out_of_range_are_refused(mistake: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"MGCA's {next(iter(mistake))} must be"):
        MGCA(**mistake)
