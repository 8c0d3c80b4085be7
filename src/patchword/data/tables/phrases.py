"""Find the phrases of a caption: phrases from the data, noun phrases, or words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from patchword.data.function_words import FUNCTION_WORDS
from patchword.data.tables.language import SPACY_MODEL, Language
from patchword.errors import UserError

Span = tuple[int, int]
Find = Callable[[str], list[Span]]


def content_words(caption: str) -> list[Span]:
    """Return the first and one past the last character of each word of `caption` except function words."""
    words = re.finditer(r"\w+(?:['’-]\w+)*", caption)
    return [word.span() for word in words if word.group().lower() not in FUNCTION_WORDS]


class NounPhrases:
    """Find noun phrases with a spaCy model; pronouns do not count.

    Args:
        model: The name of an installed model.

    Raises:
        UserError: If spaCy or the model is not installed.
    """

    def __init__(self, model: str) -> None:
        self.language = Language(model, ("data.phrases", "spacy"))

    def __call__(self, caption: str) -> list[Span]:
        """Return the first and one past the last character of each noun phrase of `caption`."""
        chunks = self.language(caption).noun_chunks
        return [(chunk.start_char, chunk.end_char) for chunk in chunks if chunk.root.pos_ != "PRON"]


def automatic(columns: Iterable[str]) -> str:
    """Resolve `auto`: `data` if there is a column `phrases`, else `spacy` if it is installed, else `words`."""
    from importlib.util import find_spec

    if "phrases" in columns:
        return "data"
    return "spacy" if find_spec("spacy") and find_spec(SPACY_MODEL) else "words"


def phrase_finder(option: str) -> Find | None:
    """Return the function for `words`, `spacy` or `spacy:MODEL`; None for `none` and `data`.

    Raises:
        UserError: If `option` has another value, or if spaCy or its model is not installed.
    """
    kind, _, name = option.partition(":")
    if kind == "spacy":
        return NounPhrases(name or SPACY_MODEL)
    if option == "words":
        return content_words
    if option == "none" or kind == "data":
        return None
    raise UserError(f"data.phrases must be none, auto, words, spacy, spacy:MODEL, data or data:COLUMN, not {option!r}")
