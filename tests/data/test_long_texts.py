"""Long texts of training that are joined from captions: order, phrases and draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest

from patchword.data.tables.image_text import ImageText
from tests.data import formats

CAPTIONS = ["A dog runs.", "It is brown .", "a ball"]
LONG = "A dog runs. It is brown . a ball"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


def data(folder: Path, lists: list[Any] | None = None, **options: Any) -> ImageText:
    """Pictures of 24 x 24 pixels, with phrases."""
    spans = [
        {"caption": 0, "start": 2, "end": 5, "box": [0.0, 0.0, 12.0, 24.0]},
        {"caption": 2, "start": 2, "end": 6, "box": [12.0, 12.0, 24.0, 24.0]},
    ]
    lists = [CAPTIONS] if lists is None else lists
    path = folder / "a.parquet"
    phrases = [spans if captions == CAPTIONS else [] for captions in lists]
    if not path.exists():
        formats.hub_parquet(path, range(len(lists)), lists, phrases=phrases)
    options = {"phrases": "data", "resize_mode": "stretch", "image_size": 24} | options
    return ImageText("parquet", train=str(path), test=str(path), **options)


def words(sample: Any) -> list[list[tuple[str, Any]]]:
    """The texts of the phrases of each caption, with their boxes."""
    return [
        [(caption[phrase.start : phrase.end], phrase.box) for phrase in phrases]
        for caption, phrases in zip(sample.captions, sample.phrases, strict=True)
    ]


def test_the_long_text_comes_first(tmp_path: Path) -> None:
    """The phrases of all captions move with them into the long text. Evaluation sees the captions as they are."""
    samples = data(tmp_path, captions="all", join="all")
    found = samples.split("train")[0]
    assert found.captions == [LONG, *CAPTIONS]
    dog, ball = ("dog", (0, 0, 12, 24)), ("ball", (12, pytest.approx(12 * 24 / 20), 24, 24))
    assert words(found) == [[dog, ball], [dog], [], [ball]]
    assert samples.split("test")[0].captions == CAPTIONS
    assert data(tmp_path, join="all").split("train")[0].captions == [LONG], "it is the first one"


def test_a_long_text_and_a_drawn_short_one(tmp_path: Path) -> None:
    """`captions_per_image` draws among the short texts only; images with few captions repeat them."""
    samples = data(tmp_path, [CAPTIONS, ["a cat"]], captions="all", captions_per_image=2, join="all").split("train")
    drawn = [samples[0, epoch].captions for epoch in range(30)]
    assert {captions[0] for captions in drawn} == {LONG}
    assert {captions[1] for captions in drawn} == {*CAPTIONS}
    assert samples[1].captions == ["a cat", "a cat"]
    samples = data(tmp_path, captions="all", captions_per_image=5, join="all").split("train")
    assert samples[0].captions == [LONG, *CAPTIONS, CAPTIONS[0]]
    assert samples[1].captions == ["a cat"] * 5
    assert data(tmp_path, captions="all", captions_per_image=1, join="all").split("train")[0].captions == [LONG]


def test_the_first_captions_joined(tmp_path: Path) -> None:
    """A random number of captions from the first one on, as SmartCLIP's authors draw sentences."""
    samples = data(tmp_path, captions="sample", join="prefixes").split("train")
    drawn = [samples[0, epoch] for epoch in range(30)]
    assert {sample.captions[0] for sample in drawn} == {"A dog runs.", "A dog runs. It is brown .", LONG}
    for sample in drawn:
        inside = ["dog", "ball"] if sample.captions == [LONG] else ["dog"]
        assert [word for word, _ in words(sample)[0]] == inside


def test_sentences_are_joined(tmp_path: Path) -> None:
    """The sentences of a long caption are its short texts."""
    samples = data(tmp_path, [["A dog runs. It is brown. It barks."]], captions="all", join="all", sentences=True)
    assert samples.split("train")[0].captions == [
        "A dog runs. It is brown. It barks.",
        *("A dog runs.", "It is brown.", "It barks."),
    ]


def test_features_of_images_do_not_depend_on_it(tmp_path: Path) -> None:
    """The fingerprint of training is that of the captions, and long texts are described separately."""
    plain, long, growing = (data(tmp_path, join=join) for join in ("none", "all", "prefixes"))
    assert plain.fingerprint("train") == long.fingerprint("train") == growing.fingerprint("train")
    assert [made.made_texts("train") for made in (plain, long, growing)] == [[], ["join all"], ["join prefixes"]]
    assert long.made_texts("test") == []
    assert long.split("train").whole[0].captions == CAPTIONS
    assert long.split("train").texts[0].captions == [LONG, *CAPTIONS]
