"""Tests of DreamLIP against a loop that implements its equations.

They also check that each group holds the patches of the caption's own image, which the authors' code gets wrong if
images have several captions.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from patchword import Images, Texts
from patchword.bench import plain
from patchword.objectives import CLIP, SPARC, DreamLIP
from tests.golden import with_scale
from tests.objectives.test_long_clip import contrast_loop, dot, unit
from tests.objectives.variants import pairs

Vector = list[float]


def with_scales(objective: DreamLIP, inverse_temperature: float, local: float) -> DreamLIP:
    """`objective` in float64 with both temperatures set exactly."""
    objective.double()
    with torch.no_grad():
        objective.grouping.local_scale.log.fill_(math.log(local))
        objective.grouping.scale.log.fill_(math.log(inverse_temperature))
    return objective


def weights_loop(caption: Vector, patches: list[Vector], threshold: float | None) -> Vector:
    """Equations (a) to (c) for one caption; all vectors are normalized."""
    s = [dot(caption, patch) for patch in patches]
    kept = [(x - min(s)) / (max(s) - min(s)) for x in s]
    sigma = 1 / len(patches) if threshold is None else threshold
    kept = [x if x >= sigma else 0.0 for x in kept]
    return [x / sum(kept) for x in kept]


def local_loop(patches: list[list[Vector]], captions: list[list[Vector]], k: float, threshold: float | None) -> float:
    """Equations (a) to (e); all vectors are normalized."""
    t, c = [], []
    for v, own in zip(patches, captions, strict=True):
        for caption in own:
            a = weights_loop(caption, v, threshold)
            t.append(caption)
            c.append(unit([sum(w * patch[d] for w, patch in zip(a, v, strict=True)) for d in range(len(caption))]))
    loss = 0.0
    for j in range(len(t)):
        for x, others in ((c[j], t), (t[j], c)):
            loss += math.log(sum(math.exp(k * dot(x, y)) for y in others)) - k * dot(c[j], t[j])
    return loss / (2 * len(t))


def normalized(x: Tensor) -> list:
    return (x / x.norm(dim=-1, keepdim=True)).tolist()


def captions_of(texts: Texts, images: Images) -> list[list[Vector]]:
    return normalized(texts.pooled.unflatten(0, (len(images), -1)))


def several(batch: int, each: int, seed: int = 0) -> tuple[Images, Texts]:
    """Images with `each` captions."""
    images, texts = pairs(batch, seed=seed, dtype=torch.float64)[0], pairs(batch * each, seed=9, dtype=torch.float64)[1]
    return images, texts


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("threshold", [0.1, 0.5, None])
@pytest.mark.parametrize("each", [1, 3])
def test_local_term_equals_loop(each: int, threshold: float | None, seed: int) -> None:
    images, texts = several(4, each, seed)
    objective = with_scales(DreamLIP(threshold=threshold), 4.0, 6.0)
    expected = local_loop(normalized(images.patches), captions_of(texts, images), 6.0, threshold)
    assert objective(images, texts)["local"].item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("candidates", ["same", "all"])
@pytest.mark.parametrize("each", [1, 3])
def test_global_term_equals_loop(each: int, candidates: str) -> None:
    """With `same`, the k-th captions are a batch of their own; with `all`, no caption of another image is left out."""
    images, texts = several(4, each)
    x, captions = normalized(images.pooled), captions_of(texts, images)
    batches = [captions] if candidates == "all" else [[[own[k]] for own in captions] for k in range(each)]
    expected = sum(contrast_loop(x, batch, 4.0, 0.0) for batch in batches) / len(batches)
    objective = with_scales(DreamLIP(candidates=candidates), 4.0, 6.0)
    assert objective(images, texts)["global"].item() == pytest.approx(expected, abs=1e-10)


def test_equals_golden() -> None:
    """The values are those of the loops, for vectors that do not depend on a random generator."""
    v = torch.tensor([[math.sin(1 + 3 * i + 5 * d + 2 * i * d * d) for d in range(6)] for i in range(24)]).double()
    images = Images(v[:3], v[3:18].unflatten(0, (3, 5)), (1, 5))
    texts = Texts(v[18:], v[18:, None], torch.ones(6, 1).bool())
    found = with_scales(DreamLIP(), 4.0, 6.0)(images, texts)
    assert found["global"].item() == pytest.approx(GOLDEN[0], abs=1e-10)
    assert found["local"].item() == pytest.approx(GOLDEN[1], abs=1e-10)


GOLDEN = (1.1292088612351936, 0.398864077754652)


@pytest.mark.parametrize("each", [1, 3])
def test_gradients_equal_those_of_the_plain_formula(each: int) -> None:
    images, texts = several(4, each)
    objective = with_scales(DreamLIP(), 4.0, 6.0)
    leaves = [images.pooled, images.patches, texts.pooled, *objective.parameters()]
    expected = torch.autograd.grad(plain.loss(objective, images, texts), leaves)
    assert_close(torch.autograd.grad(sum(objective(images, texts).values()), leaves), expected)


def scrambled(x: Tensor, each: int) -> Tensor:
    """The captions in the order in which the authors' code groups them: stacked [K, B], but read as [B, K]."""
    return x.unflatten(0, (-1, each)).transpose(0, 1).flatten(0, 1)


def test_each_group_holds_patches_of_its_own_image() -> None:
    """The patches of an image are its captions, so every group is its caption, and the loss is nearly zero.

    In the order of the authors' code only 4 of 12 captions are grouped with their own image, and the loss is large.
    """
    vectors = torch.eye(12, dtype=torch.float64)
    images = Images(vectors[::3], vectors.unflatten(0, (4, 3)), (1, 3))
    texts = Texts(vectors, vectors[:, None], torch.ones(12, 1).bool())
    objective = with_scales(DreamLIP(), 4.0, 20.0)
    assert objective(images, texts)["local"] < 1e-6
    owner = torch.arange(4).repeat_interleave(3)
    assert (scrambled(owner, 3) == owner).sum() == 4
    assert objective(images, replace(texts, pooled=scrambled(vectors, 3)))["local"] > 1


def test_with_one_caption_the_order_of_the_authors_code_is_right() -> None:
    _, texts = several(4, 1)
    assert torch.equal(scrambled(texts.pooled, 1), texts.pooled)


def test_groups_are_made_of_directions() -> None:
    """The norms of patches matter neither to their weights nor to the group, unlike in SPARC."""
    images, texts = several(4, 3)
    objective, factors = DreamLIP().double(), torch.linspace(0.1, 10, 6, dtype=torch.float64)[:, None]
    longer = replace(images, patches=images.patches * factors)
    assert_close(objective(longer, texts), objective(images, texts))
    sparc = SPARC(threshold=0.1, similarity="cosine").double()
    images, texts = several(4, 1)
    longer = replace(images, patches=images.patches * factors)
    assert (sparc(longer, texts)["local"] - sparc(images, texts)["local"]).abs() > 1e-3


def test_captions_of_one_image_are_negatives_of_the_local_term_only() -> None:
    """An image alone has nothing to learn from the global term, but has to tell its captions apart."""
    images, texts = several(1, 3)
    found = DreamLIP().double()(images, texts)
    assert found["global"] == 0
    assert found["local"] > 0.1


def test_one_image_with_one_caption_has_nothing_to_learn() -> None:
    assert all(term.abs() < 1e-12 for term in DreamLIP().double()(*several(1, 1)).values())


def test_with_one_caption_the_global_term_is_that_of_clip() -> None:
    images, texts = several(4, 1)
    expected = with_scale(CLIP(), 4.0)(images, texts)["global"]
    assert_close(with_scales(DreamLIP(), 4.0, 6.0)(images, texts)["global"], expected)


def test_rows_of_the_map_are_weights_of_tokens() -> None:
    """Equations (a) to (c) with tokens: the weights of a row sum to 1, and patches below the threshold get 0."""
    images, texts = several(4, 1)
    found = DreamLIP(threshold=0.5).double().align(images, texts)
    for b, words in enumerate(normalized(texts.tokens)):
        for j, word in enumerate(words):
            expected = weights_loop(word, normalized(images.patches[b]), 0.5) if texts.mask[b, j] else [0.0] * 6
            assert found[b, j].tolist() == pytest.approx(expected, abs=1e-10)
    assert (found[texts.mask] == 0).any()


def test_temperatures() -> None:
    """The local term has its own temperature unless both share one."""
    assert len(list(DreamLIP().parameters())) == 2
    assert len(list(DreamLIP(separate_temperature=False).parameters())) == 1


def test_weights_scale_their_own_term() -> None:
    images, texts = several(4, 3)
    before = DreamLIP().double()(images, texts)
    after = DreamLIP(global_weight=2.0, local_weight=0.1).double()(images, texts)
    assert_close(after, {"global": 2 * before["global"], "local": before["local"] / 10})


def test_threshold_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="threshold must lie in"):
        DreamLIP(threshold=1.5)
