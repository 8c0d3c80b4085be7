"""`look`: any image, any text, and where the model saw the words of one in the other."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from patchword.errors import InputError
from patchword.maps import TOKEN_SOURCES
from patchword.objectives import LOUPE, SPARC
from tests import tiny


def test_a_scene_is_seen_as_in_training() -> None:
    """Pixels as the data set has them; a part for each word, function words marked; maps from every source."""
    module = tiny.module(SPARC()).eval()
    sample = tiny.data().val[0]
    found = module.look(Image.fromarray(sample.image.permute(1, 2, 0).numpy()), "a red fish above the sun.")
    assert torch.equal(found.pixels, sample.image)
    assert found.words == ["a", "red", "fish", "above", "the", "sun", "."]
    assert found.content == [False, True, True, False, False, True, True]
    assert found.tokens == [1] * 7
    assert {source: tuple(of.shape) for source, of in found.maps.items()} == dict.fromkeys(TOKEN_SOURCES, (7, 64))
    assert found.score is not None


def test_phrases_and_one_that_is_not_there() -> None:
    module, image = tiny.module(SPARC()).eval(), Image.new("RGB", (90, 60))
    found = module.look(image, "a red fish above the sun", ["a red fish", "sun"])
    assert (found.words, found.tokens) == (["a red fish", "sun"], [2, 1])
    with pytest.raises(InputError, match="'a cat' is not a part of the caption"):
        module.look(image, "a dog", ["a cat"])


def test_loupe_proposes_regions() -> None:
    found = tiny.module(LOUPE(regions=5)).eval().look(Image.new("RGB", (64, 64)), "a red fish")
    assert [len(region.box) for region in found.regions] == [4] * 5
    confidence = [region.confidence for region in found.regions]
    assert confidence == sorted(confidence, reverse=True)
    assert found.measure == "interaction"
