"""Tests of LongCLIP against a loop that implements its equations, with principal components by Jacobi rotations.

They also check which text is the long one, that equal eigenvalues do no harm, and when nothing is projected.
"""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from patchword import Images, Texts
from patchword.bench import plain
from patchword.objectives import LongCLIP
from patchword.objectives.long_clip import principal
from tests.golden import with_scale
from tests.objectives.variants import gradients, pairs

Vector = list[float]


def dot(x: Vector, y: Vector) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True))


def unit(x: Vector) -> Vector:
    return [a / math.hypot(*x) for a in x]


def eigenvectors(s: list[Vector]) -> list[Vector]:
    """The eigenvectors of a symmetric matrix, largest eigenvalue first, by Jacobi's rotations."""
    size = len(s)
    s, v = [[*row] for row in s], [[float(i == j) for j in range(size)] for i in range(size)]
    for _ in range(30):
        for p in range(size):
            for q in range(p + 1, size):
                angle = math.atan2(2 * s[p][q], s[q][q] - s[p][p]) / 2
                c, d = math.cos(angle), math.sin(angle)
                for row in (*s, *v):  # s R and V R
                    row[p], row[q] = c * row[p] - d * row[q], d * row[p] + c * row[q]
                for k in range(size):  # R^T s
                    s[p][k], s[q][k] = c * s[p][k] - d * s[q][k], d * s[p][k] + c * s[q][k]
    order = sorted(range(size), key=lambda i: -s[i][i])
    return [[v[d][i] for d in range(size)] for i in order]


def components_loop(x: list[Vector], number: int) -> list[Vector]:
    """Equations (b) and (c)."""
    dims = range(len(x[0]))
    mean = [sum(row[d] for row in x) / len(x) for d in dims]
    centered = [[row[d] - mean[d] for d in dims] for row in x]
    covariance = [[sum(row[d] * row[e] for row in centered) for e in dims] for d in dims]
    main = eigenvectors(covariance)[:number]
    return [[mean[d] + sum(dot(row, v) * v[d] for v in main) for d in dims] for row in centered]


def cross_entropy_loop(logits: Vector, own: int, smoothing: float) -> float:
    total = math.log(sum(math.exp(z) for z in logits))
    return total - (1 - smoothing) * logits[own] - smoothing * sum(logits) / len(logits)


def contrast_loop(x: list[Vector], texts: list[list[Vector]], k: float, smoothing: float) -> float:
    """Equation (e). An image's own texts are not candidates of each other."""
    losses = []
    for i, own in enumerate(texts):
        for text in own:
            others = [t for j, row in enumerate(texts) if j != i for t in row]
            losses.append(cross_entropy_loop([k * dot(x[i], t) for t in [text, *others]], 0, smoothing))
            losses.append(cross_entropy_loop([k * dot(image, text) for image in x], i, smoothing))
    return sum(losses) / len(losses)


def loop(images: Tensor, texts: Tensor, k: float, components: int, smoothing: float) -> tuple[float, float]:
    """The terms `long` and `short` of [B, D] images and [B K, D] texts, in Python floats."""
    x, each = [unit(row) for row in images.tolist()], len(texts) // len(images)
    flat = [unit(row) for row in texts.tolist()]
    grouped = [flat[i * each : (i + 1) * each] for i in range(len(x))]
    long, short = [row[:1] for row in grouped], [row if each == 1 else row[1:] for row in grouped]
    p = components_loop(x, components)
    return contrast_loop(x, long, k, smoothing), contrast_loop(p, short, k, smoothing)


def several(batch: int, each: int, seed: int = 0) -> tuple[Images, Texts]:
    """Images with `each` texts."""
    images, texts = pairs(batch, seed=seed, dtype=torch.float64)[0], pairs(batch * each, seed=9, dtype=torch.float64)[1]
    return images, texts


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("each", [1, 2, 3])
@pytest.mark.parametrize(("batch", "components"), [(5, 1), (5, 3), (5, 32), (12, 2), (12, 5)])
def test_equals_loop(batch: int, components: int, each: int, smoothing: float, seed: int) -> None:
    """There are fewer images than dimensions (5 and 8), and more (12); the code decomposes the smaller matrix."""
    images, texts = several(batch, each, seed)
    objective = with_scale(LongCLIP(components=components, label_smoothing=smoothing), 5.0)
    found = objective(images, texts)
    long, short = loop(images.pooled, texts.pooled, 5.0, components, smoothing)
    assert found["long"].item() == pytest.approx(long, abs=1e-10)
    assert found["short"].item() == pytest.approx(short, abs=1e-10)


def test_equals_golden() -> None:
    """The values are those of the loop, for vectors that do not depend on a random generator."""
    vectors = torch.tensor(
        [[math.sin(1 + 3 * i + 5 * d + 2 * i * d * d) for d in range(6)] for i in range(21)]
    ).double()
    images, texts = vectors[:7], vectors[7:]
    objective = with_scale(LongCLIP(components=2), 5.0)
    found = objective(Images(images, images[:, None], (1, 1)), Texts(texts, texts[:, None], torch.ones(14, 1).bool()))
    assert found["long"].item() == pytest.approx(GOLDEN[0], abs=1e-10)
    assert found["short"].item() == pytest.approx(GOLDEN[1], abs=1e-10)


GOLDEN = (3.275199272244714, 3.1212084962739484)


@pytest.mark.parametrize("each", [1, 2])
@pytest.mark.parametrize("batch", [5, 12])
def test_gradients_equal_those_of_the_plain_formula(batch: int, each: int) -> None:
    """The plain formula differentiates torch's singular vectors, which is fine if all singular values differ."""
    images, texts = several(batch, each)
    objective = LongCLIP(components=2).double()
    leaves = [images.pooled, texts.pooled, objective.scale.log]
    expected = torch.autograd.grad(plain.loss(objective, images, texts), leaves)
    assert_close(torch.autograd.grad(sum(objective(images, texts).values()), leaves), expected)
    assert expected[0].abs().max() > 1e-3


@pytest.mark.parametrize("shape", [(5, 8), (12, 8)])
def test_the_gradient_flows_through_the_components(shape: tuple[int, int]) -> None:
    """Finite differences include the change of the components themselves."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    for components in (1, 2, 3):
        assert torch.autograd.gradcheck(lambda x, n=components: principal(x, n), x)


def axes(lengths: list[float], dim: int) -> Tensor:
    """Two opposite vectors of each length on its own axis, so that the eigenvalues are 2 length^2."""
    x = torch.zeros(2 * len(lengths), dim, dtype=torch.float64)
    for i, length in enumerate(lengths):
        x[2 * i, i], x[2 * i + 1, i] = length, -length
    return x.requires_grad_()


@pytest.mark.parametrize("dim", [6, 9])
def test_equal_eigenvalues_inside_or_outside_do_no_harm(dim: int) -> None:
    """The gradient is that of finite differences, while torch's gradient of singular vectors divides by 0 here."""
    x = axes([1.0, 1.0, 0.5, 0.5], dim)
    assert torch.autograd.gradcheck(lambda x: principal(x, 2), x)


@pytest.mark.parametrize("dim", [6, 9])
def test_equal_eigenvalues_at_the_border_do_not_explode(dim: int) -> None:
    """Which of two equal components is kept is arbitrary there, and the gradient ignores that it can change."""
    for gap in (0.0, 1e-9):
        x = axes([1.0, 0.5, 0.5 - gap, 0.1], dim)
        (found,) = torch.autograd.grad(principal(x, 2).square().sum(), x)
        assert found.isfinite().all()
        assert found.abs().max() < 10


@pytest.mark.parametrize(("number", "dim", "same"), [(33, 64, True), (34, 64, False), (64, 32, True), (64, 33, False)])
def test_nothing_is_projected_if_all_components_are_kept(number: int, dim: int, same: bool) -> None:
    """N centered vectors have at most N - 1 components. Their singular vectors would have no derivative."""
    x = torch.randn(number, dim, generator=torch.Generator().manual_seed(0))
    assert (principal(x, 32) is x) == same


def test_images_that_repeat_are_kept() -> None:
    """Twelve images of three kinds have two components, and the gradient is finite though all others are equal."""
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).repeat(4, 1).requires_grad_()
    found = principal(x, 4)
    assert_close(found, x)
    (gradient,) = torch.autograd.grad(found.square().sum(), x)
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 100


def test_the_projection_is_not_normalized_again() -> None:
    """Images keep the norm of their projection, so their logits with short texts are smaller."""
    x = torch.nn.functional.normalize(torch.randn(12, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert principal(x, 1).norm(dim=-1).max() < 0.99


def test_images_that_are_not_finite_give_a_loss_that_is_not_finite() -> None:
    """The decomposition does not fail, so that training can say which samples are to blame."""
    images, texts = several(5, 2)
    pooled = images.pooled.detach().index_fill(0, torch.tensor([1]), float("nan"))
    found = LongCLIP(components=2).double()(Images(pooled, images.patches, images.grid), texts)
    assert found["short"].isnan()


def test_the_first_text_is_long_and_the_others_are_short() -> None:
    """Each term reads its own texts only, and short texts have no order."""
    images, texts = several(4, 3)
    objective = LongCLIP(components=2).double()
    before = objective(images, texts)
    order = torch.tensor([0, 2, 1]) + 3 * torch.arange(4)[:, None]
    assert_close(objective(images, texts[order.flatten()]), before)
    for place, name in enumerate(("long", "short")):
        pooled = texts.pooled.detach().clone()
        pooled[place::3] = pooled[place::3].roll(1, 0)
        after = objective(images, Texts(pooled, texts.tokens, texts.mask))
        assert {other for other in before if after[other] != before[other]} == {name}


def test_a_single_text_is_long_and_short() -> None:
    images, texts = several(5, 1)
    objective = LongCLIP(components=2).double()
    twice = texts[torch.arange(5).repeat_interleave(2)]
    assert_close(objective(images, texts), objective(images, twice))


def test_weights_scale_their_own_term() -> None:
    images, texts = several(5, 2)
    before = LongCLIP().double()(images, texts)
    after = LongCLIP(long_weight=2.0, short_weight=0.1).double()(images, texts)
    assert_close(after, {"long": 2 * before["long"], "short": before["short"] / 10})


def test_both_terms_share_one_temperature() -> None:
    assert len(list(LongCLIP().parameters())) == 1
    found = gradients(LongCLIP(long_weight=0.0).double(), *several(5, 2))
    assert found["scale.log"].abs() > 1e-3


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="components must be 1 or more, not 0"):
        LongCLIP(components=0)
    with pytest.raises(ValueError, match="label_smoothing must be at least 0 and less than 1"):
        LongCLIP(label_smoothing=1.0)
