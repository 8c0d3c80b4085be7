"""Split captions into words and determine their parts of speech with a spaCy model."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from patchword.errors import UserError

NOUNS = ("NN", "NNS", "NNP", "NNPS")
ADJECTIVES = ("JJ", "JJR", "JJS")


def tagged(captions: Iterable[str], model: str) -> list[list[tuple[str, str]]]:
    """The words of each caption as an English model of spaCy splits them, each with its Penn Treebank tag.

    Raises:
        UserError: If spaCy or the model is not installed.
    """
    return [[(word.text, word.tag_) for word in caption] for caption in _language(model).pipe(captions)]


@functools.cache
def _language(model: str) -> Any:
    try:
        import spacy

        return spacy.load(model, exclude=["parser", "ner", "lemmatizer", "attribute_ruler"])
    except (ImportError, OSError) as error:
        raise UserError(
            f"data.tagger: the spaCy model {model} cannot be loaded ({str(error).splitlines()[0]}): "
            "set data.tagger to an installed model, or run: pip install spacy; python -m spacy download en_core_web_sm"
        ) from error
