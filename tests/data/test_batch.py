"""A batch has correct indices between its parts, with several captions per image."""

from __future__ import annotations

import pytest
import torch

from patchword.data.batch import Batch, Phrase, Sample, collate


def sample(number: int, captions: int, size: int = 8) -> Sample:
    """Make an image with `captions` captions, each with one phrase, and one hard negative."""
    phrase = Phrase(0, 1, (0.0, 0.0, 2.0, 2.0), torch.ones(size, size, dtype=torch.bool))
    texts = [f"{number}{letter}" for letter in "abc"[:captions]]
    image = torch.zeros(3, size, size, dtype=torch.uint8)
    return Sample(number, image, texts, [[phrase] for _ in texts], [f"not {number}"])


def batch() -> Batch:
    return collate([sample(7, 2), sample(3, 1), sample(5, 3)])


def test_every_part_knows_its_whole() -> None:
    assert batch().ids.tolist() == [7, 3, 5]
    assert batch().captions == ["7a", "7b", "3a", "5a", "5b", "5c"]
    assert batch().caption_image.tolist() == [0, 0, 1, 2, 2, 2]
    assert batch().phrase_caption.tolist() == [0, 1, 2, 3, 4, 5]
    assert batch().negative_image.tolist() == [0, 1, 2]


def test_first_caption_of_each_image() -> None:
    """The validation loss, hard negatives and picture titles use this caption."""
    assert [batch().captions[i] for i in batch().first_caption] == ["7a", "3a", "5a"]


def test_images_of_different_sizes_are_refused_by_id() -> None:
    with pytest.raises(ValueError, match=r"sample 7: 8 x 8, sample 3: 9 x 9"):
        collate([sample(7, 1), sample(3, 1, size=9)])
