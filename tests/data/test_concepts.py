"""The table of nouns has unique names and correct articles, and keeps the unseen concepts out of training."""

from collections import Counter

import pytest

from patchword.data.scenes.concepts import (
    CONCEPTS,
    TRAINING_CONCEPTS,
    UNSEEN_COMBINATIONS,
    UNSEEN_CONCEPTS,
    article,
)
from patchword.encoders.base import FUNCTION_WORDS


def test_names_are_unique():
    """Two pictures never have the same name, so captions are unambiguous."""
    names = Counter(concept.phrase for concept in CONCEPTS)
    assert max(names.values()) == 1
    assert max(Counter((c.glyph, c.tint) for c in CONCEPTS).values()) == 1


def test_training_shows_no_unseen_combination():
    assert not {c.phrase for c in UNSEEN_COMBINATIONS} & {c.phrase for c in TRAINING_CONCEPTS}


def test_training_shows_each_part_of_an_unseen_combination():
    """Noun and color are known, only their combination is new; every noun has eight other colors."""
    trained = {c.color for c in TRAINING_CONCEPTS}
    for held_out in UNSEEN_COMBINATIONS:
        assert held_out.color in trained
        assert len([c for c in TRAINING_CONCEPTS if c.noun == held_out.noun and c.color]) == 8


def test_training_shows_no_unseen_noun():
    assert not {c.noun for c in UNSEEN_CONCEPTS} & {c.noun for c in TRAINING_CONCEPTS}


def test_unseen_concepts_are_plain_and_colored():
    assert {c.color is None for c in UNSEEN_CONCEPTS} == {True, False}


@pytest.mark.parametrize(
    ("words", "expected"),
    [("owl", "an"), ("unicorn", "a"), ("hourglass", "an"), ("house", "a"), ("umbrella", "an"), ("orange car", "an")],
)
def test_article(words, expected):
    assert article(words) == expected


def test_articles_of_all_phrases():
    """New nouns whose article does not follow from the first letter must be added to this list after a check."""
    misleading = {"an hourglass", "a unicorn"}
    for concept in CONCEPTS:
        plain_rule = "an" if concept.phrase.split()[1][0] in "aeiou" else "a"
        assert concept.phrase.split()[0] == plain_rule or concept.phrase in misleading


def test_every_phrase_has_a_content_word():
    """A noun of only function words would have no word for pointing."""
    for concept in CONCEPTS:
        assert set(concept.phrase.split()) - FUNCTION_WORDS
