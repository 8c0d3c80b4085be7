"""Tests of SmartCLIP against loops that implement its equations in Python floats, and against torch's attention.

They also check the gradient through the hard mask, that every text brings its own mask, and masks of zeros.
"""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from patchword import Images, Texts
from patchword.objectives import CLIP, SmartCLIP
from patchword.ops import cosine
from tests.objectives.test_beta_clip import regular
from tests.objectives.test_flair import dot, linear
from tests.objectives.test_pacl import Largest
from tests.objectives.test_sparc import cos
from tests.objectives.variants import DIM, build, gradients, pairs

Vector = list[float]
K = 3


def shaken(**options: Any) -> SmartCLIP:
    """SmartCLIP with parameters that are sines of squares, so that each of them affects the result."""
    objective = SmartCLIP(**{"heads": 2, "temperature": 0.2} | options)
    objective.build(DIM)
    objective.double()
    start = 0
    with torch.no_grad():
        for _, parameter in sorted(objective.network.named_parameters()):
            places = torch.arange(start, start + parameter.numel(), dtype=torch.float64)
            parameter.copy_(places.square().mul(1.7).sin().reshape(parameter.shape))
            start += parameter.numel()
        objective.scale.log.fill_(math.log(5.0))
    return objective


def several(batch: int = 4) -> tuple[Images, Texts]:
    """Images with K texts each."""
    return pairs(batch, dtype=torch.float64)[0], pairs(K * batch, dtype=torch.float64, seed=1)[1]


def norm(layer: nn.LayerNorm, x: Vector) -> Vector:
    center = sum(x) / len(x)
    spread = math.sqrt(sum((a - center) ** 2 for a in x) / len(x) + 1e-5)
    scaled = zip(x, layer.weight.tolist(), layer.bias.tolist(), strict=True)
    return [(a - center) / spread * w + b for a, w, b in scaled]


def mask_loop(objective: SmartCLIP, tokens: list[Vector]) -> Vector:
    """The mask of one text: equations (a) to (c)."""
    network, width, y = objective.network, DIM // objective.heads, []
    inputs = [linear(network.inputs, norm(network.first_norm, t)) for t in tokens]
    queries, keys, values = ([x[n * DIM : (n + 1) * DIM] for x in inputs] for n in range(3))
    for token, query in zip(tokens, queries, strict=True):
        read: Vector = []
        for start in range(0, DIM, width):
            own = slice(start, start + width)
            e = [math.exp(dot(query[own], key[own]) / math.sqrt(width)) for key in keys]
            read += [
                sum(w * v[d] for w, v in zip(e, values, strict=True)) / sum(e) for d in range(start, start + width)
            ]
        h = [a + b for a, b in zip(token, linear(network.output, read), strict=True)]
        hidden = linear(network.expand, norm(network.second_norm, h))
        change = linear(network.contract, [x / (1 + math.exp(-1.702 * x)) for x in hidden])
        y.append([a + b for a, b in zip(h, change, strict=True)])
    e = [math.exp(dot(network.pool.weight[0].tolist(), x)) for x in y]
    logits = [sum(w * x[d] for w, x in zip(e, y, strict=True)) / sum(e) for d in range(DIM)]
    soft = [1 / (1 + math.exp(-z)) for z in logits]
    return soft if objective.mask == "soft" else [float(m >= 0.5) for m in soft]


def selected(texts: Texts) -> list[list[Vector]]:
    """The selected tokens of each text."""
    return [t[m].tolist() for t, m in zip(texts.tokens, texts.mask, strict=True)]


def loop(objective: SmartCLIP, images: Images, texts: Texts) -> tuple[float, float, list[list[float]]]:
    """Both terms and the masked cosines, computed one pair at a time: equations (d) and (e)."""
    masks = [mask_loop(objective, tokens) for tokens in selected(texts)]
    x, y, k = images.pooled.tolist(), texts.pooled.tolist(), objective.scale().item()
    z = [[cos([a * b for a, b in zip(i, m, strict=True)], t) for m, t in zip(masks, y, strict=True)] for i in x]
    each, loss = len(y) // len(x), 0.0
    for j in range(len(y)):
        own = j // each
        others = [k * z[own][m] for m in range(len(y)) if m == j or m // each != own]
        loss += math.log(sum(math.exp(v) for v in others)) - k * z[own][j]
        loss += math.log(sum(math.exp(k * row[j]) for row in z)) - k * z[own][j]
    sparsity = sum(map(sum, masks)) / (len(masks) * DIM)
    return objective.contrastive_weight * loss / (2 * len(y)), objective.sparsity_weight * sparsity, z


@pytest.mark.parametrize("mask", ["hard", "soft"])
@pytest.mark.parametrize("heads", [1, 2, 8])
def test_equals_loop(heads: int, mask: Any) -> None:
    """Masks, scores and both terms equal the loop, with one text and with three texts for each image."""
    objective = shaken(heads=heads, mask=mask, masked_scores=True)
    for images, texts in (pairs(dtype=torch.float64), several()):
        contrastive, sparsity, z = loop(objective, images, texts)
        expected = {"contrastive": contrastive, "sparsity": sparsity}
        found = {name: term.item() for name, term in objective(images, texts).items()}
        assert found == pytest.approx(expected, abs=1e-10)
        assert_close(objective.score(images, texts), torch.tensor(z, dtype=torch.float64), atol=1e-10, rtol=0)


# The loop's terms for `regular` features with K texts and the parameters of `shaken`.
GOLDEN = {"hard": (0.9346627531284102, 0.05416666666666667), "soft": (0.7010417444577753, 0.05496739210492151)}


@pytest.mark.parametrize("mask", GOLDEN)
def test_equals_golden(mask: Any) -> None:
    """Both terms of embeddings and parameters that do not depend on a random generator."""
    terms = shaken(mask=mask)(*regular(K))
    assert (terms["contrastive"].item(), terms["sparsity"].item()) == pytest.approx(GOLDEN[mask], abs=1e-10)


def test_the_network_is_torchs_transformer_layer() -> None:
    """The block of the authors' code, with torch's attention, on texts of the same length."""
    objective, (_, texts) = shaken(), pairs(dtype=torch.float64)
    network, everything = objective.network, torch.ones_like(texts.mask)
    attention = nn.MultiheadAttention(DIM, 2, batch_first=True).double()
    with torch.no_grad():
        attention.in_proj_weight.copy_(network.inputs.weight)
        attention.in_proj_bias.copy_(network.inputs.bias)
        attention.out_proj.load_state_dict(network.output.state_dict())
    x = network.first_norm(texts.tokens)
    h = texts.tokens + attention(x, x, x)[0]
    hidden = network.expand(network.second_norm(h))
    y = h + network.contract(hidden * torch.sigmoid(1.702 * hidden))
    expected = (network.pool(y).softmax(1) * y).sum(1)
    assert_close(network(texts.tokens, everything), expected)


def test_hard_masks_are_exactly_zero_or_one() -> None:
    """The term that carries the gradient adds an exact zero, and masks are not probabilities."""
    objective = build("SmartCLIP")
    m = objective.masks(pairs(batch=64)[1])
    assert set(m.flatten().tolist()) == {0.0, 1.0}


def test_gradient_of_a_hard_mask_is_that_of_the_sigmoid() -> None:
    """The gradient passes the threshold as if it were not there."""
    objective, (_, texts) = shaken(), pairs(dtype=torch.float64)
    logits = objective.network(texts.tokens.detach(), texts.mask).detach().requires_grad_()
    objective.network.register_forward_hook(lambda *_: logits)
    direction = torch.randn(logits.shape, dtype=torch.float64)
    (found,) = torch.autograd.grad((objective.masks(texts) * direction).sum(), [logits])
    assert_close(found, direction * logits.sigmoid() * (1 - logits.sigmoid()))


@pytest.mark.parametrize("mask", ["hard", "soft"])
def test_masks_train_the_network_but_not_the_tokens(mask: Any) -> None:
    """Tokens enter the network without gradient, and both terms train it."""
    images, texts = several()
    for weights in ({"sparsity_weight": 0.0}, {"contrastive_weight": 0.0}):
        found = gradients(shaken(mask=mask, **weights), images, texts)
        assert found["texts.tokens"].abs().max() == 0
        assert all(g.abs().max() > 1e-6 for name, g in found.items() if name.startswith("network."))


def test_every_text_brings_its_own_mask() -> None:
    """Other tokens of text 0 change only the comparisons with text 0, for all images."""
    objective, (images, texts) = shaken(masked_scores=True), pairs(dtype=torch.float64)
    tokens = texts.tokens.detach().clone()
    tokens[0] = pairs(seed=1, dtype=torch.float64)[1].tokens[0]
    before, after = objective.score(images, texts), objective.score(images, replace(texts, tokens=tokens))
    changed = (before - after).abs() > 1e-6
    assert changed[:, 0].all()
    assert not changed[:, 1:].any()


def with_logits(objective: SmartCLIP, logits: Tensor) -> SmartCLIP:
    """The objective with these logits of the masks."""
    objective.network.register_forward_hook(lambda *_: logits)
    return objective


def test_images_that_are_all_the_same_cannot_be_told_apart() -> None:
    """The loss is at least log B, whatever the masks. With the mask of an image's own text it could be lower."""
    images, texts = pairs(batch=16, dtype=torch.float64)
    same = replace(images, pooled=torch.ones(16, DIM, dtype=torch.float64))
    objective = with_logits(shaken(masked_scores=True), texts.pooled.detach())
    assert objective(same, texts)["contrastive"] >= math.log(16)
    scores = objective.score(same, texts)
    assert_close(scores, scores[:1].expand(16, -1))
    mistake = 5 * cosine(same.pooled * objective.masks(texts), texts.pooled)  # each image in the mask of its own text
    assert nn.functional.cross_entropy(mistake, torch.arange(16)) < 0.8 * math.log(16)


@pytest.mark.parametrize("mask", ["hard", "soft"])
def test_a_mask_of_zeros_gives_zeros_and_finite_gradients(mask: Any) -> None:
    """The norm of an image without dimensions is 0, by which other implementations divide."""
    images, texts = pairs()
    logits = torch.full((5, DIM), 2.0)
    logits[1] = -1000.0
    logits.requires_grad_()
    objective = with_logits(build("SmartCLIP"), logits)
    objective.mask, objective.masked_scores = mask, True
    assert (objective.score(images, texts)[:, 1] == 0).all()
    loss = torch.stack(list(objective(images, texts).values())).sum()
    for gradient in torch.autograd.grad(loss, [logits, images.pooled, texts.pooled]):
        assert gradient.isfinite().all()
        assert gradient.abs().max() < 100


def test_a_text_without_tokens_has_the_mask_of_ones() -> None:
    """Its comparisons are the cosines of the global embeddings."""
    images, texts = pairs(dtype=torch.float64)
    nothing = replace(texts, mask=texts.mask & (torch.arange(5) != 2)[:, None])
    objective = shaken(masked_scores=True)
    assert (objective.masks(nothing)[2] == 1).all()
    assert_close(objective.score(images, nothing)[:, 2], cosine(images.pooled, texts.pooled)[:, 2])


def test_masks_of_ones_give_clips_loss() -> None:
    """Only the image is masked. If nothing is, the loss is InfoNCE of the global embeddings."""
    images, texts = pairs()
    objective = with_logits(build("SmartCLIP"), torch.ones(5, DIM))
    terms = objective(images, texts)
    assert_close(terms, {"contrastive": CLIP()(images, texts)["global"], "sparsity": torch.tensor(0.1)})


def test_scores_are_not_masked_unless_asked() -> None:
    """By default scores are those of the authors' evaluation, which uses no masks."""
    images, texts = pairs()
    plain, masked = build("SmartCLIP"), build("SmartCLIP-masked_scores=True-heads=2")
    assert torch.equal(plain.score(images, texts), CLIP().score(images, texts))
    assert not plain.uses_local_features
    assert masked.uses_local_features
    assert (masked.score(images, texts) - plain.score(images, texts)).abs().max() > 0.1


def test_map_is_the_cosine_in_the_dimensions_of_the_mask() -> None:
    objective, (images, texts) = shaken(), pairs(dtype=torch.float64)
    rows = objective.align(images, texts)
    for b, tokens in enumerate(selected(texts)):
        m = mask_loop(objective, tokens)
        for n, token in enumerate(tokens):
            for p, patch in enumerate(images.patches[b].tolist()):
                expected = cos([x * y for x, y in zip(patch, m, strict=True)], token)
                assert rows[b, n, p].item() == pytest.approx(expected, abs=1e-10)


def test_no_image_is_masked_once_for_each_text() -> None:
    """Neither pass computes a tensor [B, B, D], as the authors' code does."""
    images, texts = pairs(batch=64)
    with Largest() as largest:
        gradients(build("SmartCLIP"), images, texts)
    assert largest.numbers < 64 * 64 * DIM
    assert largest.numbers >= 64 * 64


def test_starts_as_the_authors_code_does() -> None:
    """The spread of the initial weights is CLIP's, and the mask selects about half of the dimensions."""
    torch.manual_seed(0)
    objective = SmartCLIP()
    objective.build(128)
    network = objective.network
    stds = {"inputs": 128, "output": 256, "expand": 256, "contract": 256, "pool": 128}
    for name, variance in stds.items():
        layer = getattr(network, name)
        assert layer.weight.std().item() == pytest.approx(variance**-0.5, rel=0.15 if name == "pool" else 5e-2)
        assert name not in ("inputs", "output") or layer.bias.abs().max() == 0
    texts = Texts(torch.randn(50, 128), torch.randn(50, 6, 128), torch.ones(50, 6).bool())
    assert 0.4 < objective.masks(texts).mean() < 0.6
    assert objective.scale().item() == pytest.approx(1 / 0.07)
    assert not SmartCLIP(temperature=0.01, learn_temperature=False).scale.log.requires_grad


def test_heads_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="heads must be 1 or more"):
        SmartCLIP(heads=0)
    with pytest.raises(ValueError, match=r"heads must divide embed_dim: 12 .* 8"):
        SmartCLIP().build(12)
