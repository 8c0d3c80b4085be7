"""Tests of FG-CLIP against a loop.

They detect common mistakes: regions that compete within one image only, padding that is contrasted, hard negatives that
are candidates of other images, and long and short texts that are contrasted with each other.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from patchword import Images, Texts
from patchword.objectives import CLIP, FGCLIP
from patchword.objectives.fg_clip import negative_loss
from tests.objectives.test_sparc import cos
from tests.objectives.variants import DIM, pairs


def cross_entropy(scores: list[float], target: int) -> float:
    return math.log(sum(map(math.exp, scores))) - scores[target]


def loop(images: Images, texts: Texts, s: float) -> dict[str, float]:
    """Equations (a) to (d) without weights, one pair at a time."""
    x, each = images.pooled.tolist(), len(texts) // len(images)
    together = 0.0
    for k in range(each):
        y = texts.pooled[k::each].tolist()
        for i in range(len(x)):
            together += cross_entropy([s * cos(x[i], text) for text in y], i) / 2 / len(x)
            together += cross_entropy([s * cos(image, y[i]) for image in x], i) / 2 / len(x)
    regions = []
    for shares, patches, words in zip(images.regions, images.patches, images.region_texts, strict=True):
        for share, text in zip(shares.tolist(), words.tolist(), strict=True):
            if any(share):
                mean = [sum(w * v for w, v in zip(share, column, strict=True)) for column in patches.T.tolist()]
                regions.append((mean, text))
    region = 0.0
    for m, (vector, text) in enumerate(regions):
        region += cross_entropy([s * cos(vector, other) for _, other in regions], m) / 2 / len(regions)
        region += cross_entropy([s * cos(other, text) for other, _ in regions], m) / 2 / len(regions)
    negative = 0.0
    for t, text in enumerate(texts.pooled.tolist()):
        wrong = [n for n in images.negatives[t // each].tolist() if any(n)]
        scores = [s * cos(x[t // each], candidate) for candidate in [text, *wrong]]
        negative += cross_entropy(scores, 0) / len(texts)
    return {"global": together, "region": region, "negative": negative}


@pytest.mark.parametrize("each", [1, 2])
@pytest.mark.parametrize("seed", range(2))
def test_equals_loop(seed: int, each: int) -> None:
    """One image has one region and one hard negative, the others have two. Also with two texts per image."""
    images, texts = pairs(batch=6, seed=seed, dtype=torch.float64)
    images = images[::each] if each == 1 else images[:3]
    objective = FGCLIP(region_weight=1.0, negative_weight=1.0, temperature=0.2).double()
    found = {name: term.item() for name, term in objective(images, texts).items()}
    assert found == pytest.approx(loop(images, texts, objective.scale().item()), abs=1e-10)


def test_default_weights_are_the_codes() -> None:
    images, texts = pairs(dtype=torch.float64)
    ones = FGCLIP(region_weight=1.0, negative_weight=1.0).double()(images, texts)
    found = FGCLIP().double()(images, texts)
    for name, weight in {"global": 1, "region": 0.1, "negative": 0.5}.items():
        assert_close(found[name], weight * ones[name])


def test_without_its_own_terms_it_is_clip_and_needs_nothing() -> None:
    images, texts = pairs(dtype=torch.float64)
    objective = FGCLIP(region_weight=0.0, negative_weight=0.0).double()
    assert objective.needs == ()
    alone = replace(images, negatives=None, regions=None, region_texts=None)
    assert_close(objective(alone, texts), CLIP().double()(images, texts))


def test_padding_of_regions_and_of_negatives_changes_nothing() -> None:
    """Images have different numbers of regions; the rest is zeros, which would be candidates with a cosine of 0."""
    images, texts = pairs(dtype=torch.float64)
    more = torch.zeros(5, 3, DIM, dtype=torch.float64)
    padded = replace(
        images,
        negatives=torch.cat([images.negatives, more], 1),
        regions=torch.cat([images.regions, more[..., :6]], 1),
        region_texts=torch.cat([images.region_texts, more], 1),
    )
    assert_close(FGCLIP().double()(padded, texts), FGCLIP().double()(images, texts))


def test_no_region_in_the_batch() -> None:
    """The loss of regions is 0, and not NaN."""
    images, texts = pairs()
    assert FGCLIP()(replace(images, regions=images.regions * 0), texts)["region"] == 0


def test_regions_compete_with_regions_of_other_images() -> None:
    """Nine regions in five images that are all alike: the loss is log 9, and not log 2."""
    images, texts = pairs(dtype=torch.float64)
    alike = replace(images, patches=torch.ones_like(images.patches), region_texts=torch.ones_like(images.region_texts))
    loss = FGCLIP(region_weight=1.0).double()(alike, texts)["region"]
    assert loss.item() == pytest.approx(math.log(9))


def test_a_hard_negative_is_a_candidate_of_its_own_image_only() -> None:
    """The hard negatives of image 0 change the term of image 0, and no gradient reaches them from other images."""
    images, texts = pairs(batch=3, dtype=torch.float64)
    scale = FGCLIP().double().negative_scale()
    for i in range(3):
        changed = images.negatives.detach().clone()
        changed[i] = 5 * changed[i].flip(0, 1)
        before = negative_loss(images[i : i + 1], texts[i : i + 1], scale)
        after = negative_loss(replace(images, negatives=changed)[i : i + 1], texts[i : i + 1], scale)
        whole = negative_loss(replace(images, negatives=changed), texts, scale)
        assert_close(whole - negative_loss(images, texts, scale), (after - before) / 3)
