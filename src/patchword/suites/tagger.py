"""Words and their parts of speech, by a spaCy model."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from patchword.errors import InputError

NOUNS = ("NN", "NNS", "NNP", "NNPS")
ADJECTIVES = ("JJ", "JJR", "JJS")


def tagged(captions: Iterable[str], model: str) -> list[list[tuple[str, str]]]:
    """The words of each caption as spaCy splits them, each with its tag of the Penn Treebank.

    Args:
        captions: The captions.
        model: The name of an installed spaCy model of English.

    Raises:
        InputError: If spaCy or the model is not installed.
    """
    return [[(word.text, word.tag_) for word in caption] for caption in _language(model).pipe(captions)]


@functools.cache
def _language(model: str) -> Any:
    try:
        import spacy

        return spacy.load(model, exclude=["parser", "ner", "lemmatizer", "attribute_ruler"])
    except (ImportError, OSError) as error:
        raise InputError(
            f"data.tagger: the spaCy model {model} cannot be loaded ({str(error).splitlines()[0]}): "
            "name an installed one, or pip install spacy and python -m spacy download en_core_web_sm"
        ) from error
