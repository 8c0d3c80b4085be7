"""Tests of LOUPE against loops that implement its equations, with interactions computed by brute force.

There is no public code and there are no golden values of the losses. The interactions have golden values in
tests/golden/shapley.json.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity
from torch.testing import assert_close

from patchword import Images, Texts
from patchword.objectives import LOUPE
from patchword.shapley import brute_force_pair_interactions, brute_force_region_interactions
from tests.objectives.variants import DIM, build, gradients, pairs
from tests.test_masked_game import all_contexts, brute_force_masked_regions


def make(**switches: Any) -> LOUPE:
    torch.manual_seed(0)
    objective = LOUPE(**switches)
    objective.build(DIM)
    return objective.double()


def named(texts: Texts) -> Texts:
    """Captions with phrases, except the second one: tokens 0 and 2 are one phrase, token 1 is another."""
    phrases = torch.tensor([[0, 1, 0, -1], [-1, -1, -1, -1], [0, 1, 0, -1], [0, 1, 0, -1], [0, 1, 0, -1]])
    return replace(texts, phrases=phrases[:, None])


def phrases_loop(texts: Texts, b: int) -> list[torch.Tensor]:
    """The phrase vectors of one caption: the means of their tokens, or words if there is no phrase."""
    real = texts.mask[b].nonzero()[:, 0].tolist()
    ids = texts.phrases[b, 0].tolist() if texts.phrases is not None else [-1] * len(texts.mask[b])
    if all(i < 0 for i in ids):
        return [texts.tokens[b, n] for n in real]
    groups = [[n for n in real if ids[n] == i] for i in range(max(ids) + 1)]
    return [torch.stack([texts.tokens[b, n] for n in group]).mean(0) for group in groups if group]


def semantic_loop(objective: LOUPE, images: Images, texts: Texts) -> torch.Tensor:
    """L_FSA, computed for one region and one phrase at a time, with labels by brute force."""
    regions, _ = objective.region_head(images)
    total = torch.zeros((), dtype=torch.float64)
    for b in range(len(images)):
        h = [images.patches[b][region].mean(0) for region in regions[b]]
        u = phrases_loop(texts, b)
        similarity = torch.stack([torch.stack([cosine_similarity(x, y, dim=0) for y in u]) for x in h])
        labels = brute_force_pair_interactions(similarity.detach()).clamp_min(0)
        for j in range(len(u)):
            if labels[:, j].sum() == 0:  # no region belongs to the phrase
                continue
            log_sum = (objective.scale() * similarity[:, j]).exp().sum().log()
            for i in range(len(h)):
                log_p = objective.scale() * similarity[i, j] - log_sum
                total = total - labels[i, j] / labels[:, j].sum() * log_p / len(u)
    return total / len(images)


def token_loop(objective: LOUPE, images: Images, texts: Texts) -> torch.Tensor:
    """L_TSA, computed for one region at a time, with labels by brute force."""
    regions, confidence = objective.region_head(images)
    total = torch.zeros((), dtype=torch.float64)
    for b in range(len(images)):
        words = texts.tokens[b][texts.mask[b]]
        similarity = torch.stack(
            [torch.stack([cosine_similarity(v, t, dim=0) for t in words]) for v in images.patches[b]]
        )
        similarity = similarity.detach()
        if objective.label == "similarity":
            raw = torch.stack([similarity[region].amax(-1).mean() for region in regions[b]])
        else:
            worth = "deletion" if objective.label == "deletion" else "presence"
            raw = brute_force_region_interactions(similarity, regions[b], worth=worth) / regions[b].sum(-1)
            raw = -raw if objective.label == "negative" else raw
        same = raw.max() - raw.min() < 1e-12  # then every region has the label of the best one
        labels = torch.ones_like(raw) if same else (raw - raw.min()) / (raw.max() - raw.min())
        for logit, label in zip(confidence[b], labels, strict=True):
            p = 1 / (1 + (-logit).exp())
            total = total - (label * p.log() + (1 - label) * (1 - p).log()) / len(labels)
    return total / len(images)


@pytest.mark.parametrize("label", ["deletion", "negative", "presence", "similarity"])
@pytest.mark.parametrize("phrases", [False, True])
def test_terms_and_gradients_equal_loops(label: str, phrases: bool) -> None:
    """Terms and gradients equal those of the loops, which detach the labels."""
    objective, (images, texts) = make(label=label, regions=4, sides=(0.5, 1.0)), pairs(dtype=torch.float64)
    texts = named(texts) if phrases else texts
    terms = objective(images, texts)
    expected = {"token": token_loop(objective, images, texts), "semantic": semantic_loop(objective, images, texts)}
    inputs = [images.patches, texts.tokens, *objective.parameters()]
    for name, loss in expected.items():
        assert terms[name].item() == pytest.approx(loss.item(), abs=1e-10)
        found = torch.autograd.grad(terms[name], inputs, allow_unused=True, retain_graph=True)
        for x, y in zip(found, torch.autograd.grad(loss, inputs, allow_unused=True), strict=True):
            assert_close(torch.zeros(1).double() if x is None else x, torch.zeros(1).double() if y is None else y)


def test_map_is_the_exact_interaction() -> None:
    images, texts = pairs(batch=2, dtype=torch.float64)
    maps = make().align(images, texts)
    for b in range(2):
        words = texts.tokens[b][texts.mask[b]]
        similarity = cosine_similarity(images.patches[b][:, None], words, dim=-1)
        assert_close(maps[b][texts.mask[b]], brute_force_pair_interactions(similarity).mT)


def test_many_samples_approach_the_exact_labels() -> None:
    """The error with 4,000 samples is smaller than with 40."""
    images, texts = pairs(dtype=torch.float64)
    exact = make(regions=4, sides=(0.5, 1.0))
    regions, _ = exact.region_head(images)
    errors = []
    for samples in (40, 4000):
        sampled = make(regions=4, sides=(0.5, 1.0), estimator="sampled", samples=samples)
        torch.manual_seed(0)
        difference = sampled.region_labels(images, texts, regions)[0] - exact.region_labels(images, texts, regions)[0]
        errors.append(difference.square().mean().sqrt().item())
    assert errors[1] < 0.05
    assert errors[1] < 0.5 * errors[0]


def test_neural_estimator_becomes_certain_and_stops_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is uncertain at first, so the estimator samples. After training on one batch it no longer does."""
    images, texts = pairs(dtype=torch.float32)
    objective = build("LOUPE-estimator=neural-samples=20-certainty=0.1")
    object.__setattr__(objective, "certainty", 1.0)
    calls = 0

    def count(*arguments: Any, **options: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return brute_force_pair_interactions(arguments[0], arguments[1])

    monkeypatch.setattr("patchword.objectives.loupe.sampled_pair_interactions", count)
    networks = [*objective.pair_network.parameters(), *objective.region_network.parameters()]
    optimizer = torch.optim.Adam(networks, lr=1e-2)
    objective(images, texts)
    assert calls == 1
    for _ in range(100):
        loss = objective(images, texts)["estimator"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    calls = 0
    objective(images, texts)
    assert calls == 0


@pytest.mark.parametrize("label", ["deletion", "negative", "presence"])
def test_masked_labels_are_interactions_by_brute_force(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every context, and as many samples of the patches of a region, labels are those of the masked game."""
    images, texts = pairs(batch=2, grid=(2, 2), length=2, dtype=torch.float64)
    objective = make(estimator="masked", certainty=0.0, label=label, regions=4, sides=(0.5, 1.0))
    regions, _ = objective.region_head(images)
    every = all_contexts(4, 2)
    monkeypatch.setattr("patchword.shapley.masked._contexts", lambda *_: every)
    objective.masked_samples = every[0].shape[1]
    worth = "deletion" if label == "deletion" else "presence"
    raw = brute_force_masked_regions(images.masked, texts.masked, regions, texts.mask, worth=worth) / regions.sum(-1)
    raw = -raw if label == "negative" else raw
    low, high = raw.amin(-1, keepdim=True), raw.amax(-1, keepdim=True)
    found, _ = objective.region_labels(images, texts, regions)
    assert_close(found, torch.where(high - low < 1e-9, 1.0, (raw - low) / (high - low)))


def test_masked_game_is_played_by_uncertain_regions_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regions about which the network is certain are not encoded again, and keep its prediction."""
    objective, (images, texts) = make(estimator="masked", certainty=0.3, regions=4, sides=(0.5, 1.0)), pairs()
    objective = objective.float()
    regions, _ = objective.region_head(images)
    certain = torch.arange(4) % 2 == 0
    log_variance = torch.where(certain, -9.0, 9.0).repeat(5)[:, None, None].expand(-1, *images.grid)
    monkeypatch.setattr(objective.region_network, "forward", lambda maps, mask: (maps[:, 1] * 3, log_variance))
    asked = []

    def sample(first: Any, second: Any, regions: torch.Tensor, mask: torch.Tensor, **_: Any) -> torch.Tensor:
        asked.append(regions)
        return torch.full(regions.shape[:2], 7.0)

    monkeypatch.setattr("patchword.objectives.loupe.masked_region_interactions", sample)
    monkeypatch.setattr("patchword.objectives.loupe.min_max", lambda x, _: x)
    labels, _ = objective.region_labels(images, texts, regions)
    assert torch.equal(asked[0], regions & ~certain[:, None])
    size = regions.sum(-1)
    assert_close(labels, torch.where(certain, torch.tensor(3 / 6), 7.0 / size))


def test_masked_game_of_several_captions_uses_the_image_of_each() -> None:
    """Three captions of an image have the labels that they have as three pairs with copies of the image."""
    objective, (images, texts) = make(estimator="masked", certainty=0.0, regions=4), pairs(6, dtype=torch.float64)
    two = images[torch.tensor([1, 4])]
    torch.manual_seed(0)
    several = objective(two, texts)
    torch.manual_seed(0)
    copies = objective(images[torch.tensor([1, 1, 1, 4, 4, 4])], texts)
    assert_close(several["token"], copies["token"])


def test_labels_of_the_same_seed_are_equal() -> None:
    objective, (images, texts) = (
        build("LOUPE-estimator=masked-samples=20-masked_samples=2-certainty=0.1"),
        pairs(grid=(4, 5)),
    )
    regions, _ = objective.region_head(images)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(objective.region_labels(images, texts, regions)[0])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_estimators_train_the_same_parameters_but_for_the_networks() -> None:
    exact, neural = build("LOUPE"), build("LOUPE-estimator=neural-samples=20-certainty=0.1")
    masked = build("LOUPE-estimator=masked-samples=20-masked_samples=2-certainty=0.1")
    assert neural.state_dict().keys() == masked.state_dict().keys()
    extra = {name for name, _ in neural.named_parameters()} - {name for name, _ in exact.named_parameters()}
    assert extra
    assert all(name.startswith(("region_network.", "pair_network.")) for name in extra)
    assert all(
        gradients(neural, *pairs())[name].abs().sum() > 0
        for name in extra
        if not name.endswith("attention.in_proj_bias")
    )


def test_phrases_of_one_token_are_words() -> None:
    """Losses are the same if every token is a separate phrase and if there are no phrases."""
    objective, (images, texts) = make(), pairs(dtype=torch.float64)
    own = torch.arange(4).expand(5, 4)
    for phrases in own, torch.full_like(own, -1):
        assert_close(objective(images, replace(texts, phrases=phrases[:, None])), objective(images, texts))


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"regions": 0}, "LOUPE's regions must be 1 or more, not 0"),
        ({"samples": 0}, "LOUPE's samples must be 1 or more, not 0"),
        ({"masked_samples": 0}, "LOUPE's masked_samples must be 1 or more, not 0"),
        ({"sides": ()}, "sides must be"),
        ({"sides": (0.5, 1.5)}, "sides must be"),
    ],
)
def test_mistakes_are_named(switches: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LOUPE(**switches)


def test_an_empty_caption_has_finite_labels() -> None:
    """Where every region has several patches, a sum of `finfo.min` over a region is infinite and the labels are NaN."""
    images, texts = pairs(grid=(4, 5))
    regions = torch.ones(len(images), 3, 20, dtype=torch.bool)
    texts = replace(texts, mask=torch.zeros_like(texts.mask))
    labels, _ = build("LOUPE-label=similarity").region_labels(images, texts, regions)
    assert labels.isfinite().all()


@pytest.mark.parametrize("label", ["deletion", "negative", "presence", "similarity"])
def test_labels_of_a_large_grid_tell_regions_apart(label: str) -> None:
    """On 24 x 24 patches with cosines near 0, as in 768 dimensions, I / |R| is small, but not constant."""
    generator = torch.Generator().manual_seed(0)
    patches, tokens = (torch.randn(2, n, 768, generator=generator) for n in (576, 8))
    patches[..., 384:], tokens[..., :384] = 0, tokens[..., :384] / 48  # nearly orthogonal: cosines of sd .001
    images = Images(patches[:, 0], patches, (24, 24))
    texts = Texts(tokens[:, 0], tokens, torch.ones(2, 8, dtype=torch.bool))
    objective = LOUPE(label=label)  # type: ignore[arg-type]
    objective.build(768)
    labels, _ = objective.region_labels(images, texts, objective.region_head(images)[0])
    assert ((labels > 0) & (labels < 1)).any(-1).all()


def test_labels_lie_between_zero_and_one() -> None:
    objective, (images, texts) = make(sides=(0.5, 1.0)), pairs(dtype=torch.float64)
    labels, _ = objective.region_labels(images, texts, objective.region_head(images)[0])
    assert labels.min() == 0
    assert (labels.amax(-1) == 1).all()
