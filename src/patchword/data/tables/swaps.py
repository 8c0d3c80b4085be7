"""Hard negatives of captions: two words or phrases of the same kind change places, as in NegCLIP (arXiv 2210.01936).

A brown dog chases a small cat.     A small cat chases a brown dog.     (noun phrases)
A brown dog chases a small cat.     A brown cat chases a small dog.     (nouns)
A brown dog chases a small cat.     A small dog chases a brown cat.     (adjectives)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations
from random import Random
from typing import Any

from patchword.data.tables.language import SPACY_MODEL, Language

Span = tuple[int, int]

# One letter for each word, by its Penn Treebank tag or its universal part of speech. All other words are a dot.
LETTERS = {"NN": "n", "NNS": "p", "ADJ": "a", "ADV": "r", "VERB": "v", "AUX": "x"}
# Singular nouns, plural nouns, adjectives, adverbs, and verbs with the auxiliaries and adverbs in front of them.
KINDS = ("n", "p", "a", "r", "[vrx]*v")
SHORTEST = 3  # words of a noun phrase; the swap of shorter ones is mostly that of their nouns


class Swaps:
    """Make a hard negative of a caption.

    One of the kinds of words and phrases that the caption has twice is drawn, and then two of this kind. The choice
    depends only on the caption, so that it is the same in every run. A caption without two different words of the same
    kind has no hard negative.

    Args:
        model: The name of an installed spaCy model, which finds the kinds of words.

    Raises:
        UserError: If spaCy or the model is not installed.
    """

    def __init__(self, model: str) -> None:
        self.language = Language(model, ("data.negatives", "swap"))

    def __call__(self, caption: str) -> list[str]:
        """Return a list with the hard negative of `caption`, or an empty list."""
        random = Random(caption)
        found = [pairs for spans in _kinds(self.language(caption)) if (pairs := _different(caption, spans))]
        return [exchanged(caption, *random.choice(random.choice(found)))] if found else []


def swap_model(negatives: str | None) -> str | None:
    """Return the model of the option `swap` or `swap:MODEL`; None for a column and for no hard negatives."""
    kind, _, name = (negatives or "").partition(":")
    return (name or SPACY_MODEL) if kind == "swap" else None


def exchanged(caption: str, first: Span, second: Span) -> str:
    """Return `caption` with two of its parts exchanged. The beginning of the caption keeps its capital letter."""
    (a, b), (c, d) = sorted((first, second))
    one, other = caption[a:b], caption[c:d]
    if not caption[:a].strip() and one[:1].isupper() and not one[1:2].isupper():
        one, other = one[0].lower() + one[1:], other[0].upper() + other[1:]
    return caption[:a] + other + caption[b:c] + one + caption[d:]


def _kinds(parsed: Any) -> list[list[Span]]:
    """Return the first and one past the last character of all words or phrases of each kind."""
    letters = "".join(LETTERS.get(word.tag_) or LETTERS.get(word.pos_, ".") for word in parsed)
    spans = [[match.span() for match in re.finditer(kind, letters)] for kind in KINDS]
    spans.append([(chunk.start, chunk.end) for chunk in parsed.noun_chunks if len(chunk) >= SHORTEST])
    return [[(parsed[i:j].start_char, parsed[i:j].end_char) for i, j in of_kind] for of_kind in spans]


def _different(caption: str, spans: Sequence[Span]) -> list[tuple[Span, Span]]:
    """Return the pairs of parts that are not the same text."""
    return [
        (one, other)
        for one, other in combinations(spans, 2)
        if caption[slice(*one)].casefold() != caption[slice(*other)].casefold()
    ]
