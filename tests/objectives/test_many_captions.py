"""Tests of several captions per image: objectives treat all of them as positives, or reject them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid
from torch.testing import assert_close
from torch.utils.data import DataLoader

import patchword.objectives
from patchword import Images, Objective, Texts, contrast, distributed
from patchword.contrast import cross_entropies
from patchword.data.batch import Sample, collate
from patchword.errors import UserError
from patchword.features import map_tensors
from patchword.objectives import CLIP, FILIP, FLAIR, LOUPE, MGCA, PACL, SPARC, DreamLIP, GLoRIA, SigLIP, Sum
from patchword.ops import cosine, normalize
from tests import tiny
from tests.objectives import variants
from tests.objectives.variants import VARIANTS, build, gradients
from tests.ranks import on_ranks

K = 3
ON_RANKS = (
    *("SPARC-negatives=batch", "FILIP-keep_ratio=0.6", "SigLIP-normalizer=texts", "FLAIR-normalizer=texts"),
    "BetaCLIP-pooling=own",
    "LongCLIP-components=2",
)
# LOUPE's estimators draw other contexts for each caption.
SEVERAL = [name for name in VARIANTS if build(name).multi_positive and not name.startswith("LOUPE-estimator")]


def features() -> tuple[Images, Texts]:
    """Four images with three texts each."""
    torch.manual_seed(0)
    images = Images(torch.randn(4, 16), torch.randn(4, 6, 16), (2, 3))
    texts = Texts(torch.randn(4 * K, 16), torch.randn(4 * K, 5, 16), torch.ones(4 * K, 5).bool())
    return images, texts


def multi_positive(scores: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """FLAIR's equation for scores [I, K I]: a sum over texts, a mean over images."""
    total = torch.zeros(())
    for i, row in enumerate(scale * scores + bias):
        for j, z in enumerate(row):
            total = total - logsigmoid(z if j // K == i else -z)
    return total / len(scores)


def softmax(to_texts: Tensor, to_images: Tensor) -> Tensor:
    """Symmetric InfoNCE of logits [I, K I], in two loops: an own text competes with the texts of the other images."""
    total = torch.zeros((), dtype=to_texts.dtype)
    for t in range(to_texts.shape[1]):
        i = t // K
        others = [z for j, z in enumerate(to_texts[i]) if j // K != i]
        total = total + torch.stack([to_texts[i, t], *others]).logsumexp(0) - to_texts[i, t]
        total = total + to_images[:, t].logsumexp(0) - to_images[i, t]
    return total / (2 * to_texts.shape[1])


@pytest.mark.parametrize("objective", [SigLIP(bias=-1.0), FLAIR(bias=-1.0)], ids=["SigLIP", "FLAIR"])
def test_sigmoid_losses_equal_the_equation(objective: SigLIP | FLAIR) -> None:
    """Each loss equals two loops over its own matrix of scores."""
    images, texts = features()
    objective.build(16)
    k, b = objective.scale(), objective.bias.squeeze()
    found = objective(images, texts)
    whole = multi_positive(SigLIP().score(images, texts), k, b)
    if isinstance(objective, SigLIP):
        assert_close(found["global"], whole)
    else:
        assert_close(found["global"], 0.5 * whole)
        assert_close(found["text_conditioned"], 0.5 * multi_positive(objective.score(images, texts), k, b))


def test_the_normalizer_counts_images_or_texts() -> None:
    """With `texts`, SigLIP and FLAIR's global loss divide by B K, and FLAIR's text-conditioned one by B + K - 1."""
    images, texts = features()
    for cls, factors in ((SigLIP, {"global": K}), (FLAIR, {"global": K, "text_conditioned": (4 + K - 1) / 4})):
        found = []
        for normalizer in ("images", "texts"):
            torch.manual_seed(0)
            objective = cls(normalizer=normalizer)
            objective.build(16)
            found.append(objective(images, texts))
        by_images, by_texts = found
        assert_close({name: term * factors[name] for name, term in by_texts.items()}, by_images)


@pytest.mark.parametrize("budget", [1, 30, 2**22])
def test_softmax_losses_equal_the_equation(monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
    """Each loss over all pairs equals two loops over its own scores, also if tiles separate an image's texts."""
    monkeypatch.setattr(contrast, "BUDGET", budget)
    images, texts = features()
    together = 1 / 0.07 * cosine(images.pooled, texts.pooled)
    expected = softmax(together, together)
    several = CLIP(), SPARC(global_weight=1.0), MGCA(), LOUPE(), DreamLIP(candidates="all")
    for objective in (*several, GLoRIA(global_weight=0.5, temp3=1 / 0.07)):
        objective.build(16)
        assert_close(objective(images, texts)["global"], expected)
    gloria, filip, pacl = GLoRIA(), FILIP(), PACL()
    local = 10 * gloria.match(images, texts)
    assert_close(gloria(images, texts)["local"], 2 * softmax(local, local))
    to_texts, to_images = (z / 0.07 for z in filip.similarities(images, texts))
    assert_close(filip(images, texts)["local"], softmax(to_texts, to_images))
    pooled = pacl.score(images, texts) / 0.07
    assert_close(pacl(images, texts)["global"], softmax(pooled, pooled))


def test_label_smoothing_spreads_over_the_candidates_of_each_text() -> None:
    """The candidates of an own text are itself and the texts of other images; those of a text are all images."""
    torch.manual_seed(0)
    z, smooth = torch.randn(4, 4 * K), 0.1
    to_texts, to_images = cross_entropies(lambda x, y: (z, z), z, z.mT, label_smoothing=smooth)
    over_texts, over_images = [], []
    for t in range(4 * K):
        row = torch.stack([z[t // K, t], *(x for j, x in enumerate(z[t // K]) if j // K != t // K)])
        for logits, own, losses in ((row, 0, over_texts), (z[:, t], t // K, over_images)):
            losses.append(cross_entropy(logits, torch.tensor(own), label_smoothing=smooth))
    assert_close(to_texts, torch.stack(over_texts).mean())
    assert_close(to_images, torch.stack(over_images).mean())


@pytest.mark.parametrize("variant", ["SPARC", "SPARC-reduction=sample", "MGCA", "LOUPE"])
def test_terms_of_own_pairs_see_each_caption_with_its_image(variant: str) -> None:
    """Losses within a pair are those of K pairs with the same image."""
    images, texts = features()
    objective = build(variant).to(torch.float32)
    objective.build(16)
    found, repeated = objective(images, texts), objective(images[torch.arange(12) // K], texts)
    for name in found.keys() - {"global"}:
        assert_close(found[name], repeated[name])


def test_tokens_of_an_images_other_captions_are_no_negatives() -> None:
    """SPARC's negatives of the whole batch are those of the caption itself and of the captions of other images."""
    images, texts = features()
    a = SPARC(negatives="batch")
    own = images[torch.arange(12) // K]
    k, grouped = a.scale(), normalize(a.align(own, texts) @ own.patches)
    t, expected = normalize(texts.tokens), torch.zeros(())
    for x, y in ((grouped, t), (t, grouped)):
        for c in range(12):
            allowed = torch.cat([y[j] for j in range(12) if j == c or j // K != c // K])
            target = 5 * sum(j == c or j // K != c // K for j in range(c))
            expected = expected + cross_entropy(k * x[c] @ allowed.T, target + torch.arange(5), reduction="sum")
    assert_close(a(images, texts)["local"], expected / 2 / texts.mask.sum())


@pytest.mark.parametrize("objective", [CLIP(), FILIP(), GLoRIA()], ids=lambda objective: type(objective).__name__)
def test_one_image_with_its_own_captions_has_nothing_to_learn(objective: Objective) -> None:
    """Without other images there are no negatives, and the loss is exactly zero."""
    images, texts = features()
    assert all(term == 0 for term in objective(images[:1], texts[:K]).values())


@pytest.mark.parametrize("variant", SEVERAL)
def test_the_order_of_an_images_captions_does_not_matter(variant: str) -> None:
    """It matters only to objectives that say so: their captions have roles or places."""
    images = variants.pairs(batch=4, dtype=torch.float64)[0]
    texts = variants.pairs(batch=4 * K, seed=1, dtype=torch.float64)[1]
    objective = build(variant, torch.float64)
    mixed = torch.tensor([2, 0, 1, 3, 5, 4, 8, 7, 6, 10, 11, 9])
    found, expected = (sum(objective(images, side).values()) for side in (texts[mixed], texts))
    if variants.is_ordered(variant):
        assert (found - expected).abs() > 1e-9
    else:
        assert_close(found, expected)


def _rank_gradients(rank: int, variant: str, how: distributed.Exchange, budget: int) -> dict[str, Tensor]:
    """The loss and gradients that DDP would leave on this rank, with two images and six captions on each rank."""
    ranks = distributed.world_size()
    images, texts = variants.pairs(2 * ranks, dtype=torch.float64)[0], variants.pairs(6 * ranks, dtype=torch.float64)[1]
    images, texts = (map_tensors(x, lambda x: x.detach()) for x in (images, texts))
    images, texts = images[2 * rank : 2 * rank + 2], texts[6 * rank : 6 * rank + 6]
    for x in (images.pooled, images.patches, images.negatives, images.region_texts, images.views):
        x.requires_grad_()
    for x in (texts.pooled, texts.tokens):
        x.requires_grad_()
    objective = build(variant, torch.float64)
    before, contrast.BUDGET = contrast.BUDGET, budget
    with distributed.exchange(how):
        found = gradients(objective, images, texts)
        found["loss"] = torch.stack(list(objective(images, texts).values())).sum().detach()
    contrast.BUDGET = before
    return {
        n: distributed.gather(x / ranks) if n.startswith(("images.", "texts.")) else distributed.gather(x[None]).mean(0)
        for n, x in found.items()
    }


@pytest.mark.parametrize("variant", [name for name in SEVERAL if "-" not in name or name in ON_RANKS])
def test_ranks_and_tiles_equal_one_process(variant: str) -> None:
    """Two ranks that gather and three in a ring give the loss and gradients of one process, also in small tiles."""
    for ranks, how, budget in ((2, "all_gather", 2**22), (2, "ring", 70), (3, "ring", 2**22), (3, "all_gather", 1)):
        images = variants.pairs(2 * ranks, dtype=torch.float64)[0]
        texts = variants.pairs(6 * ranks, dtype=torch.float64)[1]
        one = build(variant, torch.float64)
        expected = gradients(one, images, texts)
        expected["loss"] = torch.stack(list(one(images, texts).values())).sum().detach()
        for found in on_ranks(_rank_gradients, variant, how, budget, ranks=ranks):
            assert_close(found, expected)


def test_a_sum_takes_several_captions_if_all_its_parts_do() -> None:
    assert Sum({"a": SigLIP(), "b": FLAIR()}).multi_positive
    assert not Sum({"a": SigLIP(), "b": PACL(pooling="own")}).multi_positive


def samples(captions: tuple[int, ...]) -> DataLoader[Sample]:
    """A batch of images, where `captions` is the number of captions of each image."""
    pixels = torch.randint(256, (len(captions), 3, 64, 64), dtype=torch.uint8)
    made = [
        Sample(i, pixels[i], [f"a red apple {'and a snail ' * j}" for j in range(n)], [[] for _ in range(n)], [])
        for i, n in enumerate(captions)
    ]
    return DataLoader(made, batch_size=len(made), collate_fn=collate)  # type: ignore[arg-type]


def fit(objective: Objective, captions: tuple[int, ...], folder: Path) -> float:
    trainer = tiny.trainer(folder, max_steps=1, limit_val_batches=0)
    trainer.fit(tiny.module(objective), samples(captions), samples((1,)))
    return float(trainer.callback_metrics["train/loss"])


@pytest.mark.parametrize(
    "name",
    [
        *("CLIP", "SPARC", "FILIP", "GLoRIA", "MGCA", "LOUPE", "SigLIP", "FLAIR"),
        *("LongCLIP", "DreamLIP", "SmartCLIP", "BetaCLIP", "PowerCLIP"),
    ],
)
def test_training_takes_as_many_captions_as_the_data_gives(name: str, tmp_path: Path) -> None:
    assert fit(getattr(patchword.objectives, name)(), (2, 2, 2), tmp_path) > 0


def test_two_passes_over_the_towers_change_nothing() -> None:
    """The loss of three images with two captions each is the same in chunks of two images and of two captions."""
    (batch,) = samples((2, 2, 2))
    losses = []
    for size in (None, 2):
        module = tiny.exact_module(SPARC(), chunk_size=size)
        images, texts, _ = module(batch)
        losses.append(module.losses(images, texts))
    assert_close(*losses)


@pytest.mark.parametrize(
    ("objective", "captions", "message"),
    [
        (PACL(pooling="own"), (2, 2, 2), "PACL takes one caption of each image, and the batch has 6 for 3 images"),
        (SigLIP(), (1, 2, 3), "each image of a training batch must have the same number of captions"),
    ],
)
def test_captions_that_would_be_taken_for_negatives_are_refused(
    objective: Objective, captions: tuple[int, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        fit(objective, captions, tmp_path)
