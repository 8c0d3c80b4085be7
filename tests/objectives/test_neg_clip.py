"""Tests of NegCLIP against a loop.

They detect common mistakes: texts that compete with hard negatives, hard negatives of the own image only, and padding
that counts as a negative.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from patchword import Images, Texts
from patchword.objectives import CLIP, NegCLIP
from tests.objectives.test_sparc import cos
from tests.objectives.variants import DIM, pairs


def loop(images: Images, texts: Texts, k: float) -> float:
    """The four equations, one pair at a time. Hard negatives that are zero are padding."""
    x, y = images.pooled.tolist(), texts.pooled.tolist()
    wrong = [n for negatives in images.negatives.tolist() for n in negatives if any(n)]
    to_text = to_image = 0.0
    for i in range(len(x)):
        own = math.exp(k * cos(x[i], y[i]))
        to_text -= math.log(own / sum(math.exp(k * cos(x[i], candidate)) for candidate in [*y, *wrong]))
        to_image -= math.log(own / sum(math.exp(k * cos(image, y[i])) for image in x))
    return (to_text + to_image) / 2 / len(x)


@pytest.mark.parametrize("seed", range(3))
def test_equals_loop(seed: int) -> None:
    """The second image of the pairs has one hard negative, the others have two."""
    images, texts = pairs(seed=seed, dtype=torch.float64)
    objective = NegCLIP(temperature=0.2).double()
    assert objective(images, texts)["global"].item() == pytest.approx(
        loop(images, texts, objective.scale().item()), abs=1e-10
    )


def test_without_hard_negatives_it_is_clip() -> None:
    images, texts = pairs(dtype=torch.float64)
    for negatives in (torch.zeros(5, 2, DIM), torch.zeros(5, 0, DIM)):
        alone = replace(images, negatives=negatives.double())
        assert_close(NegCLIP().double()(alone, texts), CLIP().double()(images, texts))


def test_more_padding_changes_nothing() -> None:
    """An image with fewer hard negatives than another one has zero vectors, whose cosine of 0 must not count."""
    images, texts = pairs(dtype=torch.float64)
    padded = replace(images, negatives=torch.cat([images.negatives, torch.zeros(5, 3, DIM, dtype=torch.float64)], 1))
    assert_close(NegCLIP().double()(padded, texts), NegCLIP().double()(images, texts))


def test_a_negative_is_one_for_all_images_and_for_no_text() -> None:
    """The gradient of the loss reaches a hard negative from every image, and texts compete without them."""
    images, texts = pairs(batch=3, dtype=torch.float64)
    objective = NegCLIP(temperature=0.2).double()
    one = torch.zeros(3, 1, DIM, dtype=torch.float64)
    one[0] = images.pooled[2].detach()  # the hard negative of image 0 is like image 2
    found = objective(replace(images, negatives=one), texts)["global"]
    plain = CLIP(temperature=0.2).double()(images, texts)["global"]
    k = objective.scale()
    z = k * CLIP().double().score(images, texts)
    n = k * CLIP().double().score(images, replace(texts, pooled=one[:, 0]))[:, :1]
    rows = (torch.cat([z, n], 1).logsumexp(1) - z.logsumexp(1)).mean() / 2
    assert_close(found, plain + rows)
    assert rows > 0.1
