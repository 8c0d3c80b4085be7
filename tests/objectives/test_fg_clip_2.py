"""Tests of FG-CLIP 2 against a loop, with the state that one step leaves for the next.

They detect common mistakes: texts of regions that move away from equal texts or from themselves, too few neighbors,
a margin that has a gradient or belongs to one rank, and texts of one image that are each other's negatives.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from patchword import Images, Texts
from patchword.errors import UserError
from patchword.objectives import FGCLIP, FGCLIP2, NegCLIP, SigLIP
from tests.objectives.test_fg_clip import cross_entropy
from tests.objectives.test_sparc import cos
from tests.objectives.variants import DIM, pairs
from tests.ranks import on_ranks

ONES = dict.fromkeys(["region_weight", "text_weight", "negative_weight", "batch_negative_weight", "rank_weight"], 1.0)
NONE = dict.fromkeys(ONES, 0.0)


class Loop:
    """Equations (a) to (d) and (1) to (3) without weights, one pair at a time, with its own margin."""

    def __init__(self, objective: FGCLIP2) -> None:
        self.neighbors, self.limit, self.margin = objective.neighbors, objective.similarity_limit, 0.0
        self.cosines = objective.rank_similarity == "cosine"
        self.k, self.b, self.s = objective.scale().item(), objective.bias.item(), objective.negative_scale().item()

    def __call__(self, images: Images, texts: Texts) -> dict[str, float]:
        x, y = images.pooled.tolist(), texts.pooled.tolist()
        each, wrong = len(y) // len(x), [[n for n in row if any(n)] for row in images.negatives.tolist()]
        terms = dict.fromkeys(["global", "region", "text", "negative", "batch_negative", "rank"], 0.0)
        for k in range(each):
            own = y[k::each]
            for i, image in enumerate(x):
                for j, text in enumerate(own):
                    z = self.k * cos(image, text) + self.b
                    terms["global"] += math.log1p(math.exp(-z if i == j else z)) / len(x)
                right = self.s * cos(image, own[i])
                others = [self.s * cos(image, n) for n in wrong[i]]
                terms["negative"] += cross_entropy([right, *others], 0) / len(y)
                candidates = [*own, *(n for row in wrong for n in row)]
                terms["batch_negative"] += cross_entropy([self.s * cos(image, c) for c in candidates], i) / 2 / len(y)
                terms["batch_negative"] += cross_entropy([self.s * cos(other, own[i]) for other in x], i) / 2 / len(y)
        gaps = []
        for t, text in enumerate(y):
            image = x[t // each]
            gaps += [(1 if self.cosines else self.s) * (cos(image, text) - cos(image, n)) for n in wrong[t // each]]
        terms["rank"] = sum(max(0.0, self.margin - gap) for gap in gaps) / len(gaps)
        self.margin = min(max(sum(gaps) / len(gaps), 0.0), 10.0)
        self._regions(images, terms)
        return terms

    def _regions(self, images: Images, terms: dict[str, float]) -> None:
        regions = []
        for shares, patches, words in zip(images.regions, images.patches, images.region_texts, strict=True):
            for share, text in zip(shares.tolist(), words.tolist(), strict=True):
                if any(share):
                    mean = [sum(w * v for w, v in zip(share, column, strict=True)) for column in patches.T.tolist()]
                    regions.append((mean, text))
        for m, (vector, text) in enumerate(regions):
            to_texts = [self.s * cos(vector, other) for _, other in regions]
            to_regions = [self.s * cos(other, text) for other, _ in regions]
            terms["region"] += (cross_entropy(to_texts, m) + cross_entropy(to_regions, m)) / 2 / len(regions)
        losses = []
        for m, (_, text) in enumerate(regions):
            near = sorted(cos(text, other) for n, (_, other) in enumerate(regions) if n != m)
            near = [c for c in near if c <= self.limit][-self.neighbors :]
            losses += [math.log(sum(map(math.exp, near)))] if near else []
        terms["text"] = sum(losses) / len(losses)


@pytest.mark.parametrize("each", [1, 2])
@pytest.mark.parametrize("cosines", [False, True])
def test_equals_loop(each: int, cosines: bool) -> None:
    """Three batches in a row, since the margin depends on the batch before; also with two texts per image.

    One image has one region and one hard negative, the others have two. All regions are within reach of each other, or
    only the three nearest ones below a cosine of 0.3.
    """
    limits = {"neighbors": 3, "similarity_limit": 0.3} if cosines else {}
    similarity = "cosine" if cosines else "logit"
    objective = FGCLIP2(**ONES, **limits, rank_similarity=similarity, fine_temperature=0.3).double()
    loop = Loop(objective)
    margins = set()
    for seed in range(3):
        images, texts = pairs(batch=6, seed=seed, dtype=torch.float64)
        images = images[: 6 // each]
        found = {name: term.item() for name, term in objective(images, texts).items()}
        assert found == pytest.approx(loop(images, texts), abs=1e-10)
        assert objective.margin.item() == pytest.approx(loop.margin, abs=1e-10)
        margins.add(loop.margin)
    assert len(margins) > 1


def test_default_weights_are_the_codes() -> None:
    """The code's 0.5 times 0.6, 3 and 0.4 are written as products."""
    images, texts = pairs(dtype=torch.float64)
    ones, found = (FGCLIP2(**options).double()(images, texts) for options in (ONES, {}))
    weights = {"region": 0.2, "text": 0.1, "negative": 0.5 * 3, "batch_negative": 0.5 * 0.6, "rank": 0.5 * 0.4}
    for name, weight in {"global": 1.0, **weights}.items():
        assert_close(found[name], weight * ones[name])


def test_is_made_of_siglip_fgclip_and_negclip() -> None:
    images, texts = pairs(dtype=torch.float64)
    taus = {"temperature": 0.3}
    found = FGCLIP2(**ONES, temperature=0.3, bias=-1.0, fine_temperature=0.3).double()(images, texts)
    first = FGCLIP(region_weight=1.0, negative_weight=1.0, **taus).double()(images, texts)
    assert_close(found["global"], SigLIP(**taus, bias=-1.0).double()(images, texts)["global"])
    assert_close([found["region"], found["negative"]], [first["region"], first["negative"]])
    assert_close(found["batch_negative"], NegCLIP(**taus).double()(images, texts)["global"])


def test_needs_only_what_its_terms_read() -> None:
    images, texts = pairs()
    alone = replace(images, negatives=None, regions=None, region_texts=None)
    objective = FGCLIP2(**NONE)
    assert objective.needs == ()
    assert_close(objective(alone, texts), SigLIP()(images, texts))
    for name in ONES:
        need = "regions" if name in ("region_weight", "text_weight") else "negatives"
        assert FGCLIP2(**NONE | {name: 1.0}).needs == (need,)


def text_loss(u: Tensor, **options: int) -> Tensor:
    """L_text of regions with the texts u."""
    return FGCLIP2(**options).text_loss(u, torch.ones(len(u), dtype=torch.bool))


def on_circle(*degrees: float) -> Tensor:
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], 1)


def test_texts_move_away_from_their_nearest_others() -> None:
    """Three texts at 0, 60 and 120 degrees. With one neighbor, each has a cosine of 1/2 with its nearest."""
    u = on_circle(0, 60, 120)
    assert text_loss(u, neighbors=1).item() == pytest.approx(0.5)
    inner = math.log(2 * math.exp(0.5))
    outer = math.log(math.exp(0.5) + math.exp(-0.5))
    assert text_loss(u).item() == pytest.approx((inner + 2 * outer) / 3)


def test_equal_texts_do_not_move_apart() -> None:
    """A text of the same words, or almost the same, is no neighbor, and gets no gradient from its twin."""
    u = on_circle(0, 0, 10, 90).requires_grad_()
    loss = text_loss(u)
    near = [math.log(math.exp(0.0))] * 2 + [math.log(math.exp(math.sin(math.radians(10))))]
    last = math.log(2 * math.exp(0.0) + math.exp(math.sin(math.radians(10))))
    assert loss.item() == pytest.approx((sum(near) + last) / 4)
    twins = on_circle(0, 5).requires_grad_()
    loss = text_loss(twins)
    assert loss == 0
    assert torch.autograd.grad(loss, twins)[0].abs().max() == 0


@pytest.mark.parametrize("degrees", [(30,), (0, 0, 0)])
def test_without_neighbors_the_loss_of_texts_is_zero(degrees: tuple[float, ...]) -> None:
    """The logarithm of an empty sum is minus infinity."""
    assert text_loss(on_circle(*degrees)) == 0
    images, texts = pairs()
    assert FGCLIP2()(replace(images, regions=images.regions * 0), texts)["text"] == 0


def test_ties_at_the_last_neighbor_change_nothing() -> None:
    """Only one of two equally near texts is a neighbor. Which one does not matter to the loss, in any order."""
    u = on_circle(0, 60, -60, 180)
    losses = [text_loss(u[order], neighbors=1) for order in ([0, 1, 2, 3], [2, 3, 1, 0])]
    assert_close(*losses)


def test_padding_of_regions_and_of_negatives_changes_nothing() -> None:
    """Images have different numbers of regions; the rest is zeros, which would be neighbors with a cosine of 0."""
    images, texts = pairs(dtype=torch.float64)
    more = torch.zeros(5, 3, DIM, dtype=torch.float64)
    padded = replace(
        images,
        negatives=torch.cat([images.negatives, more], 1),
        regions=torch.cat([images.regions, more[..., :6]], 1),
        region_texts=torch.cat([images.region_texts, more], 1),
    )
    short, long = FGCLIP2().double(), FGCLIP2().double()
    for _ in range(2):  # the second time with the margin of the first
        assert_close(long(padded, texts), short(images, texts))


def triple(right: float, *wrong: float) -> tuple[Images, Texts]:
    """One image along the first axis with a text and hard negatives of these cosines."""

    def at(*cosines: float) -> Tensor:
        return torch.tensor([[c, math.sqrt(1 - c * c)] for c in cosines], dtype=torch.float64)

    images = Images(at(1.0), at(1.0)[None], (1, 1), negatives=at(*wrong)[None])
    return images, Texts(at(right), at(right)[None], torch.ones(1, 1, dtype=torch.bool))


def ranking(**options: object) -> FGCLIP2:
    return FGCLIP2(**NONE | {"rank_weight": 1.0} | options).double()


def test_margin_is_the_mean_gap_of_the_step_before() -> None:
    """At first it is 0. Logits are 10 times the cosines: gaps of 4 and 1, then of -1 and 2."""
    objective = ranking(fine_temperature=0.1)
    assert objective(*triple(0.8, 0.4, 0.7))["rank"] == 0
    assert objective.margin.item() == pytest.approx(2.5)
    assert objective(*triple(0.5, 0.6, 0.3))["rank"].item() == pytest.approx((3.5 + 0.5) / 2)
    assert objective.margin.item() == pytest.approx(0.5)


def test_margin_has_bounds() -> None:
    """It stays in [0, 10]: a mean gap of -2 gives 0, and one of 60 gives 10."""
    objective = ranking()
    objective.margin.fill_(5.0)
    objective(*triple(0.5, 0.52))
    assert objective.margin == 0
    objective(*triple(0.8, 0.2))
    assert objective.margin == 10


def test_margin_of_cosines_does_not_depend_on_the_temperature() -> None:
    for tau in (0.01, 0.5):
        objective = ranking(fine_temperature=tau, rank_similarity="cosine")
        objective(*triple(0.8, 0.4, 0.7))
        assert objective.margin.item() == pytest.approx(0.25)
        assert objective(*triple(0.5, 0.6))["rank"].item() == pytest.approx(0.35)


def test_margin_has_no_gradient() -> None:
    """If the margin of this step were that of the same step, the gradients of pairs below it would partly cancel."""
    images, texts = triple(0.8, 0.4, 0.7)
    objective = ranking(fine_temperature=0.1)
    objective.margin.fill_(2.5)
    n = images.negatives.requires_grad_()
    (gradient,) = torch.autograd.grad(objective(images, texts)["rank"], n)
    assert gradient[0, 0].abs().max() == 0
    assert gradient[0, 1].abs().max() > 0


def test_validation_and_batches_without_hard_negatives_keep_the_margin() -> None:
    objective = ranking(fine_temperature=0.1)
    objective(*triple(0.8, 0.4, 0.7))
    objective.eval()(*triple(0.5, 0.6))
    assert objective.margin.item() == pytest.approx(2.5)
    images, texts = triple(0.8, 0.4)
    assert objective.train()(replace(images, negatives=images.negatives * 0), texts)["rank"] == 0
    assert objective.margin.item() == pytest.approx(2.5)


def test_margin_is_stored() -> None:
    """A run that is resumed has the margin of the step before, and not 0."""
    objective, resumed = ranking(fine_temperature=0.1), ranking(fine_temperature=0.1)
    objective(*triple(0.8, 0.4, 0.7))
    resumed.load_state_dict(objective.state_dict())
    assert_close(resumed(*triple(0.5, 0.6)), objective(*triple(0.5, 0.6)))


def _margins(rank: int) -> list[float]:
    """The margins after two steps, where the first rank has three hard negatives and the second one has four."""
    images, texts = pairs(batch=4, dtype=torch.float64)
    half = slice(2 * rank, 2 * rank + 2)
    objective = FGCLIP2(fine_temperature=1.0).double()
    margins = []
    for _ in range(2):
        objective(images[half], texts[half])
        margins.append(objective.margin.item())
        texts = replace(texts, pooled=texts.pooled.flip(0))
    return margins


def test_margin_is_the_mean_over_all_ranks() -> None:
    """The mean over hard negatives, and not the mean of the ranks' means."""
    images, texts = pairs(batch=4, dtype=torch.float64)
    objective = FGCLIP2(fine_temperature=1.0).double()
    expected = []
    for _ in range(2):
        objective(images, texts)
        expected.append(objective.margin.item())
        texts = replace(texts, pooled=texts.pooled.flip(0))
    assert max(expected) > 0
    for found in on_ranks(_margins):
        assert found == pytest.approx(expected, abs=1e-12)


def _with_one_of_each(ranks: int, rank: int) -> dict[str, float]:
    """The terms and the next margin of a rank's share of four pairs, with one region and one hard negative in all."""
    images, texts = pairs(batch=4, dtype=torch.float64)
    first = torch.zeros(4, 2, 1, dtype=torch.float64)
    first[0, 0] = 1
    images = replace(images, negatives=first * images.negatives, regions=first * images.regions)
    share = slice(4 // ranks * rank, 4 // ranks * (rank + 1))
    objective = FGCLIP2(fine_temperature=1.0).double()
    objective.margin.fill_(5.0)
    terms = {name: term.item() for name, term in objective(images[share], texts[share]).items()}
    return terms | {"margin": objective.margin.item()}


def _half(rank: int) -> dict[str, float]:
    return _with_one_of_each(2, rank)


def test_fewer_regions_and_hard_negatives_than_ranks() -> None:
    """The means are over all ranks, also if the mean number of a rank is one half."""
    expected = _with_one_of_each(1, 0)
    assert expected["rank"] > 0
    halves = on_ranks(_half)
    assert {name: sum(half[name] for half in halves) / 2 for name in expected} == pytest.approx(expected, abs=1e-12)


def test_texts_of_an_image_do_not_compete_with_each_other() -> None:
    """With the same text twice, every mean over texts is that of one text, and the global loss counts twice."""
    images, texts = pairs(dtype=torch.float64)
    once, twice = (FGCLIP2().double() for _ in range(2))
    found = twice(images, texts[torch.arange(5).repeat_interleave(2)])
    expected = once(images, texts)
    expected["global"] = 2 * expected["global"]
    assert_close(found, expected)
    assert_close(twice.margin, once.margin)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neighbors": 0}, "neighbors must be 1 or more, not 0"),
        ({"similarity_limit": 1.0}, "similarity_limit must be at least -1 and less than 1, not 1.0"),
    ],
)
def test_wrong_options_are_errors(options: dict[str, float], message: str) -> None:
    """With a limit of 1, a text would be its own neighbor."""
    with pytest.raises(UserError, match=message):
        FGCLIP2(**options)
