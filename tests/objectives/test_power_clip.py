"""Tests of PowerCLIP against loops over all sets of regions and against its equations in Python floats.

There is no golden value of the authors. The golden values here are those of the loop, on boxes that are written down.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from patchword import Images, Objective, Texts, contrast, distributed
from patchword.features import map_tensors
from patchword.objectives import CLIP, PowerCLIP
from patchword.objectives.power_clip import phrase_sums
from tests.objectives.test_beta_clip import regular
from tests.objectives.test_pacl import unit
from tests.objectives.variants import DIM, build, gradients, pairs
from tests.ranks import on_ranks

Vector = list[float]
K = 3
# Boxes of one, two and four patches on a grid of 2 x 2.
BOXES = torch.tensor([[1, 0, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]], dtype=torch.bool)


def fixed(**options: Any) -> PowerCLIP:
    """PowerCLIP with the boxes above."""
    objective = PowerCLIP(**{"regions": len(BOXES)} | options).double()
    objective.draw_boxes = lambda images: BOXES  # type: ignore[method-assign]
    return objective


def in_tree(texts: Texts) -> Texts:
    """Captions of four tokens with phrases on two levels.

    The first caption has two phrases and a sentence, the second one has no phrase, and a token of the third one is in
    a phrase of the second level only.
    """
    phrases = torch.tensor([[0, 1, 0, -1], [2, 2, 2, 2]]).repeat(len(texts), 1, 1)
    phrases[1] = -1
    if len(texts) > 2:
        phrases[2] = torch.tensor([[7, 7, -1, -1], [-1, 3, 3, 3]])
    return replace(texts, phrases=phrases)


def logsumexp(values: Vector) -> float:
    most = max(values)
    return most + math.log(sum(math.exp(x - most) for x in values))


def phrases_loop(texts: Texts, j: int) -> list[Vector]:
    """The vectors p of one text: the sums of the normalized tokens of each phrase, or the words."""
    selected = [n for n, here in enumerate(texts.mask[j].tolist()) if here]
    t = {n: unit(texts.tokens[j, n].tolist()) for n in selected}
    levels = [] if texts.phrases is None else texts.phrases[j].tolist()
    groups: dict[Any, Vector] = {}
    for v, level in enumerate(levels):
        for n in selected:
            if level[n] >= 0:
                before = groups.get((v, level[n]), [0.0] * DIM)
                groups[v, level[n]] = [a + b for a, b in zip(before, t[n], strict=True)]
    return list(groups.values()) or [t[n] for n in selected]


def sets(count: int) -> list[tuple[int, ...]]:
    """All 2^M sets of regions."""
    return [chosen for size in range(count + 1) for chosen in itertools.combinations(range(count), size)]


def products(regions: list[Vector], phrases: list[Vector]) -> list[list[float]]:
    """Q for each set of regions and each phrase: the products of sums of vectors."""
    found = []
    for chosen in sets(len(regions)):
        r = [sum(regions[m][d] for m in chosen) for d in range(DIM)]
        found.append([sum(x * y for x, y in zip(r, p, strict=True)) for p in phrases])
    return found


def similarity_loop(objective: PowerCLIP, regions: list[Vector], phrases: list[Vector]) -> float:
    """S of one pair: the sum of (e) over all sets, and (f) with one summand for each region."""
    if not phrases:
        return 0.0
    t, q = objective.smoothing, products(regions, phrases)
    t2r = sum(t * logsumexp([row[b] / t for row in q]) for b in range(len(phrases))) / len(phrases)
    exponents = []
    for p in phrases:
        x = [sum(a * b for a, b in zip(r, p, strict=True)) / (2 * t) for r in regions]
        exponents.append(sum(y + objective.zeta * (logsumexp([y, -y]) - math.log(2)) for y in x))
    return t2r + t * logsumexp(exponents)


def powerset_loop(objective: PowerCLIP, boxes: Tensor, images: Images, texts: Texts) -> float:
    """L_P, one pair at a time."""
    patches, each = images.patches.tolist(), len(texts) // len(images)
    chosen = [[p for p, inside in enumerate(box) if inside] for box in boxes.tolist()]
    regions = [[unit([sum(v[p][d] for p in box) for d in range(DIM)]) for box in chosen] for v in patches]
    phrases = [phrases_loop(texts, j) for j in range(len(texts))]
    s = [[similarity_loop(objective, r, p) for p in phrases] for r in regions]
    loss = 0.0
    for j in range(len(texts)):
        i = j // each
        wrong_texts = [s[i][n] for n in range(len(texts)) if n // each != i]
        wrong_images = [s[n][j] for n in range(len(images)) if n != i]
        for wrong in (wrong_texts, wrong_images):
            loss += max(0.0, objective.margin + max(wrong, default=-math.inf) - s[i][j]) / len(texts)
    return loss


@pytest.mark.parametrize("zeta", [0.0, 0.75, 1.0])
@pytest.mark.parametrize("smoothing", [0.001, 0.1, 1.0])
@pytest.mark.parametrize("phrased", [False, True])
def test_equals_loop(phrased: bool, smoothing: float, zeta: float) -> None:
    """The powerset term equals the loop over all sets, with one text and with three texts for each image."""
    objective = fixed(zeta=zeta, smoothing=smoothing, margin=0.5)
    for each in (1, K):
        images = pairs(4, (2, 2), dtype=torch.float64)[0]
        texts = pairs(4 * each, dtype=torch.float64, seed=1)[1]
        texts = in_tree(texts) if phrased else texts
        found = objective(images, texts)
        assert list(found) == ["global", "powerset"]
        assert found["powerset"].item() == pytest.approx(0.2 * powerset_loop(objective, BOXES, images, texts), abs=1e-8)
        assert_close(found["global"], CLIP().double()(images, texts)["global"])


# The loop's values of `powerset` for `regular()` with a smoothing of 0.1, by zeta and the number of texts of an image.
GOLDEN = {
    (0.0, 1): 0.6219179445056344,
    (0.0, K): 0.17464535687697405,
    (0.75, 1): 0.5468097738941212,
    (0.75, K): 0.1653541605262766,
}


@pytest.mark.parametrize(("zeta", "each"), GOLDEN)
def test_equals_golden(zeta: float, each: int) -> None:
    """The term on embeddings and boxes that do not depend on a random generator."""
    found = fixed(zeta=zeta, smoothing=0.1)(*regular(each))["powerset"].item()
    assert found == pytest.approx(GOLDEN[zeta, each], abs=1e-9)


def vectors(count: int, number: int, seed: int = 0) -> tuple[Tensor, Texts]:
    """Regions of one image, and phrases of one text."""
    generator = torch.Generator().manual_seed(seed)
    r, p = (torch.randn(1, n, DIM, generator=generator, dtype=torch.float64) for n in (count, number))
    return r, Texts(p[:, 0], p, torch.ones(1, number).bool())


def similarity(count: int, number: int, seed: int = 0, **options: Any) -> float:
    return PowerCLIP(regions=count, **options).similarity(*vectors(count, number, seed)).item()


def aggregates(count: int, number: int, seed: int = 0, t: float = 0.0) -> tuple[float, float]:
    """T2R and R2T of (d) over all sets, with maxima, or with smooth ones if t is not 0."""
    regions, phrases = vectors(count, number, seed)
    q = products(regions[0].tolist(), phrases.tokens[0].tolist())

    def most(values: Vector) -> float:
        return t * logsumexp([x / t for x in values]) if t else max(values)

    t2r = sum(most([row[b] for row in q]) for b in range(number)) / number
    return t2r, sum(most(row) for row in q) / len(q)


@pytest.mark.parametrize("count", [1, 2, 5, 8])
@pytest.mark.parametrize("number", [1, 2, 4])
@pytest.mark.parametrize("t", [0.05, 0.5])
def test_closed_forms_equal_brute_force(t: float, number: int, count: int) -> None:
    """T2R is exact; R2T equals its two bounds over all sets at both ends of zeta, and is between them elsewhere."""
    regions, phrases = vectors(count, number)
    q = products(regions[0].tolist(), phrases.tokens[0].tolist())
    mean = [sum(row[b] for row in q) / len(q) for b in range(number)]
    lower = t * logsumexp([x / t for x in mean])
    upper = t * (logsumexp([x / t for row in q for x in row]) - math.log(len(q)))
    t2r, r2t = aggregates(count, number, t=t)
    low, middle, high = (similarity(count, number, smoothing=t, zeta=zeta) for zeta in (0.0, 0.75, 1.0))
    assert (low, high) == pytest.approx((t2r + lower, t2r + upper), abs=1e-8)
    assert low < middle < high
    assert low <= t2r + r2t + 1e-9
    assert t2r + r2t < high


@pytest.mark.parametrize("seed", range(5))
def test_small_smoothing_gives_the_maxima(seed: int) -> None:
    """Then T2R is the mean of the sums of positive similarities, which is its maximum over all sets."""
    regions, phrases = vectors(6, 3, seed)
    s = regions[0] @ phrases.tokens[0].T
    t2r, r2t = aggregates(6, 3, seed)
    assert s.relu().sum(0).mean().item() == pytest.approx(t2r, abs=1e-9)
    low = similarity(6, 3, seed, smoothing=1e-6, zeta=0.0)
    assert low == pytest.approx(t2r + s.sum(0).max().item() / 2, abs=1e-4)
    high = similarity(6, 3, seed, smoothing=1e-6, zeta=1.0)
    assert low <= t2r + r2t + 1e-4
    assert t2r + r2t <= high + 1e-4
    soft = aggregates(6, 3, seed, t=0.01)[1]
    assert r2t <= soft <= r2t + 0.01 * math.log(3)


def test_phrases_of_all_levels_are_sums_of_normalized_tokens() -> None:
    """A caption without phrases has its words, and tokens that are not selected belong to no phrase."""
    texts = in_tree(pairs(dtype=torch.float64)[1])
    found = phrase_sums(texts)
    for j in range(5):
        expected = sorted(phrases_loop(texts, j))
        assert sorted(found.tokens[j][found.mask[j]].tolist()) == [pytest.approx(p, abs=1e-12) for p in expected]
    assert found.mask.sum(-1).tolist() == [3, 2, 2, 3, 2]
    assert found.tokens[~found.mask].abs().max() == 0
    hidden = replace(texts, phrases=texts.phrases.masked_fill(texts.mask[:, None], -1))
    words = phrase_sums(replace(texts, phrases=None))
    assert_close(phrase_sums(hidden).tokens[:, :4], words.tokens)  # all phrases consist of tokens that are not selected
    assert torch.equal(phrase_sums(hidden).mask.sum(-1), words.mask.sum(-1))


def powerset(texts: Texts, seed: int = 0, **options: Any) -> Tensor:
    torch.manual_seed(seed)
    return PowerCLIP(**options).double()(pairs(dtype=torch.float64)[0], texts)["powerset"]


def test_neither_numbers_nor_levels_nor_padding_of_phrases_matter() -> None:
    """Numbers may exceed the number of tokens, levels have no order, and empty levels add no phrase."""
    texts = in_tree(pairs(dtype=torch.float64)[1])
    expected = powerset(texts)
    renamed = texts.phrases * 5 + 17
    assert_close(powerset(replace(texts, phrases=renamed.masked_fill(texts.phrases < 0, -1))), expected)
    assert_close(powerset(replace(texts, phrases=texts.phrases.flip(1))), expected)
    assert_close(powerset(texts.padded(7, 4)), expected)
    assert not torch.equal(powerset(replace(texts, phrases=texts.phrases[:, :1])), expected)


def test_boxes_are_rectangles_of_every_size() -> None:
    """No box is empty, all are rectangles, and all heights and widths and patches occur."""
    images = pairs(1, (3, 5))[0]
    torch.manual_seed(0)
    boxes = PowerCLIP(regions=3000).draw_boxes(images)[0].view(-1, 3, 5)
    rows, columns = boxes.any(2), boxes.any(1)
    assert torch.equal(boxes, rows[:, :, None] & columns[:, None])
    for inside, size in ((rows, 3), (columns, 5)):
        first, length = inside.int().argmax(-1), inside.sum(-1)
        place = torch.arange(size)
        assert torch.equal(inside, (place >= first[:, None]) & (place < (first + length)[:, None]))
        assert length.unique().tolist() == list(range(1, size + 1))
        assert_close(inside.float().mean(0), inside.flip(1).float().mean(0), atol=0.05, rtol=0)  # no side is preferred
    assert PowerCLIP().draw_boxes(pairs(1, (1, 1))[0]).all()


def test_regions_are_drawn_anew_in_each_step_and_repeat_with_the_seed() -> None:
    texts = pairs(dtype=torch.float64)[1]
    torch.manual_seed(1)
    objective, images = PowerCLIP().double(), pairs(dtype=torch.float64)[0]
    first, second = (objective(images, texts)["powerset"] for _ in range(2))
    assert torch.equal(first, powerset(texts, seed=1))
    assert not torch.equal(first, second)


def test_scores_and_maps_draw_nothing() -> None:
    """What inference computes is not random, and does not move the random state of training."""
    objective, (images, texts) = PowerCLIP(), pairs()
    before = torch.get_rng_state()
    assert torch.equal(objective.score(images, texts), CLIP().score(images, texts))
    objective.align(images, texts)
    assert torch.equal(torch.get_rng_state(), before)


def test_one_image_has_nothing_to_be_told_apart_from() -> None:
    """Without another image the hinge is 0, and so is its gradient."""
    images, texts = pairs()
    terms = build("PowerCLIP")(images[:1], texts[:1])
    assert terms["powerset"] == 0
    assert all(x.abs().sum() == 0 for x in torch.autograd.grad(terms["powerset"], [images.patches, texts.tokens]))


def test_texts_without_a_word_match_no_image() -> None:
    """Their similarity is 0 with every image, whatever the smoothing adds to others."""
    _, texts = pairs(dtype=torch.float64)
    phrases = phrase_sums(replace(texts, mask=texts.mask & (torch.arange(5) != 2)[:, None]))
    found = PowerCLIP(regions=3, smoothing=1.0).similarity(torch.randn(4, 3, DIM).double(), phrases)
    assert (found[:, 2] == 0).all()
    assert (found[:, [0, 1, 3, 4]] != 0).all()


def test_equal_pairs_get_equal_gradients() -> None:
    """Hardest negatives that tie share the gradient: no copy of the second pair is preferred as the first one's."""
    images, texts = (map_tensors(x[torch.tensor([0, 1, 1])], lambda x: x.detach()) for x in pairs(2))
    leaves = [images.patches.requires_grad_(), texts.tokens.requires_grad_()]
    torch.manual_seed(0)
    term = PowerCLIP(margin=100.0, smoothing=0.1)(images, texts)["powerset"]
    for gradient in torch.autograd.grad(term, leaves):
        assert gradient[1].abs().sum() > 0.01
        assert_close(gradient[1], gradient[2])


def test_tiles_bound_the_similarities_of_regions_and_phrases(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tile has more than the budget's similarities of regions and phrases, in both passes."""
    sizes = []
    whole = PowerCLIP.similarity

    def counted(self: PowerCLIP, regions: Tensor, phrases: Texts) -> Tensor:
        sizes.append(len(regions) * len(phrases))
        return whole(self, regions, phrases)

    monkeypatch.setattr(PowerCLIP, "similarity", counted)
    monkeypatch.setattr(contrast, "BUDGET", 3 * 10 * 8 * 6)
    images, texts = pairs(12)
    PowerCLIP()(images, in_tree(texts))["powerset"].backward()
    assert max(sizes) <= 6  # ten regions and two levels of four tokens
    assert sum(sizes) == 2 * 12 * 12 - sizes[-1]  # the backward pass does not compute the last tile again


def _rank_gradients(rank: int, how: distributed.Exchange, budget: int) -> dict[str, Tensor]:
    """The loss and gradients that DDP would leave on this rank; the first rank has longer captions and more levels."""
    ranks = distributed.world_size()
    images, texts = pairs(2 * ranks, dtype=torch.float64)
    mine = slice(2 * rank, 2 * rank + 2)
    images, texts = (map_tensors(x[mine], lambda x: x.detach()) for x in (images, _with_fewer_levels(texts)))
    length, levels = (4, 2) if rank == 0 else (3, 1)
    texts = replace(
        texts,
        tokens=texts.tokens[:, :length],
        mask=texts.mask[:, :length],
        ids=None,
        phrases=texts.phrases[:, :levels, :length],
    )
    for x in (
        images.pooled,
        images.patches,
        images.negatives,
        images.region_texts,
        images.views,
        texts.pooled,
        texts.tokens,
    ):
        x.requires_grad_()
    before, contrast.BUDGET = contrast.BUDGET, budget
    with distributed.exchange(how):
        objective = build("PowerCLIP", torch.float64)
        found = gradients(objective, images, texts)
        found["loss"] = _total(objective, images, texts)
    contrast.BUDGET = before
    found["texts.tokens"] = torch.nn.functional.pad(found["texts.tokens"], (0, 0, 0, 4 - length))
    return {
        n: distributed.gather(x / ranks) if n.startswith(("images.", "texts.")) else distributed.gather(x[None]).mean(0)
        for n, x in found.items()
    }


def _with_fewer_levels(texts: Texts) -> Texts:
    """Captions with phrases, where only the first two have a second level and a fourth token."""
    texts = in_tree(texts)
    later = (torch.arange(len(texts)) >= 2)[:, None]
    phrases = torch.cat([texts.phrases[:, :1], texts.phrases[:, 1:].masked_fill(later[..., None], -1)], 1)
    return replace(texts, mask=texts.mask & ~(later & (torch.arange(4) == 3)), phrases=phrases)


def _total(objective: Objective, images: Images, texts: Texts) -> Tensor:
    return torch.stack(list(objective(images, texts).values())).sum().detach()


def test_phrases_of_other_ranks_are_those_of_one_process() -> None:
    """Ranks have captions of different lengths and numbers of levels, and gather, or are in a ring, also in tiles."""
    for ranks, how, budget in ((2, "all_gather", 2**22), (2, "ring", 70), (3, "ring", 2**22), (3, "all_gather", 1)):
        images, texts = pairs(2 * ranks, dtype=torch.float64)
        texts = _with_fewer_levels(texts)
        one = build("PowerCLIP", torch.float64)
        expected = gradients(one, images, texts) | {"loss": _total(one, images, texts)}
        for found in on_ranks(_rank_gradients, how, budget, ranks=ranks):
            assert_close(found, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regions": 0}, "regions must be 1 or more, not 0"),
        ({"zeta": 1.5}, r"zeta must lie in \[0, 1\], not 1.5"),
        ({"zeta": math.nan}, r"zeta must lie in \[0, 1\]"),
        ({"margin": -0.1}, "margin must be 0 or more, not -0.1"),
        ({"margin": math.inf}, "margin must be 0 or more, not inf"),
        ({"smoothing": 0.0}, r"smoothing must lie in \[1e-6, 1\], not 0.0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PowerCLIP(**options)


def test_weights_scale_their_own_term() -> None:
    """Each weight changes its own term only."""
    images, texts = pairs(4, (2, 2), dtype=torch.float64)
    before, after = fixed()(images, texts), fixed(global_weight=0.5, powerset_weight=1.0)(images, texts)
    assert_close(after, {"global": 0.5 * before["global"], "powerset": 5 * before["powerset"]})
