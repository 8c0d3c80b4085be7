"""Tests the matching of captions and images against a naive loop, and chance levels against many guesses."""

import math

import pytest
import torch

from patchword.metrics.compositional import (
    CHANCE_OF_TWO,
    Answers,
    caption_found,
    captions_tie,
    chance_of_captions,
    image_found,
    images_tie,
    mean_over_groups,
    share,
)


@pytest.mark.parametrize(("images", "captions"), [(1, 2), (1, 5), (2, 2), (2, 3)])
def test_what_is_found_equals_a_naive_loop(images: int, captions: int) -> None:
    """Scores have few levels, so that many scores tie."""
    generator = torch.Generator().manual_seed(captions)
    for _ in range(200):
        scores = torch.randint(4, (images, captions), generator=generator).float()
        table = scores.tolist()
        caption = [all(table[k][k] > table[k][c] for c in range(captions) if c != k) for k in range(images)]
        image = [all(table[k][k] > table[i][k] for i in range(images) if i != k) for k in range(images)]
        assert (caption_found(scores).tolist(), image_found(scores).tolist()) == (caption, image)
        assert captions_tie(scores) == any(
            table[k][k] == table[k][c] for k in range(images) for c in range(captions) if c != k
        )
        assert images_tie(scores) == any(
            table[k][k] == table[i][k] for k in range(images) for i in range(images) if i != k
        )


def test_chance_of_two_by_two_is_what_guesses_get() -> None:
    """For 20,000 questions with independent scores, shares are within four standard errors of 1/4, 1/4 and 1/6."""
    scores = torch.rand(20_000, 2, 2, generator=torch.Generator().manual_seed(0))
    own, other = scores.diagonal(dim1=1, dim2=2), scores.flip(2).diagonal(dim1=1, dim2=2)
    answers = Answers(
        torch.zeros(20_000).long(), torch.full((20_000,), 2), own > other, own > other.flip(1), own[:, 0] != own[:, 0]
    )
    caption, image = answers.caption, answers.image
    for i in range(50):
        assert (caption_found(scores[i]).all(), image_found(scores[i]).all()) == (caption[i], image[i])
    for name, right in (("caption", caption), ("image", image), ("both", answers.both)):
        p = CHANCE_OF_TWO[name]
        assert abs(share(right) - p) < 4 * math.sqrt(p * (1 - p) / 20_000)


def test_nan_finds_nothing() -> None:
    """A NaN is an error both as the right score and as a wrong score."""
    for place in (0, 0), (0, 1):
        scores = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
        scores[place] = math.nan
        assert caption_found(scores).tolist() == [False, True]
        assert image_found(scores.T).tolist() == [False, True]


def test_means_over_groups_and_chance() -> None:
    """All groups have the same weight; small groups can be left out."""
    right = torch.tensor([1, 1, 1, 0, 0]).bool()
    both = right[:, None].expand(-1, 2)
    answers = Answers(torch.tensor([4, 4, 4, 4, 9]), torch.tensor([2, 2, 5, 5, 5]), both, both, right)
    assert mean_over_groups(answers, right) == (pytest.approx((3 / 4 + 0) / 2), 2)
    assert mean_over_groups(answers, right, least=2) == (pytest.approx(3 / 4), 1)
    assert math.isnan(mean_over_groups(answers, right, least=9)[0])
    assert chance_of_captions(answers) == pytest.approx((2 / 2 + 3 / 5) / 5)
    assert len(answers[right]) == 3
