"""The four wrong orders of a caption's words, as in ARO (arXiv 2210.01936)."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from patchword.suites.tagger import ADJECTIVES, NOUNS


def wrong_orders(tagged: Sequence[tuple[str, str]], generator: np.random.Generator) -> list[str]:
    """Return the caption with its words in four other orders.

    The first order shuffles the nouns among themselves and the adjectives among themselves. The second shuffles all
    other words. The third shuffles the words within each group of three consecutive words, and the fourth shuffles
    these groups.
    """
    words, tags = [word for word, _ in tagged], [tag for _, tag in tagged]
    nouns = [i for i, tag in enumerate(tags) if tag in NOUNS]
    adjectives = [i for i, tag in enumerate(tags) if tag in ADJECTIVES]
    others = [i for i, tag in enumerate(tags) if tag not in NOUNS + ADJECTIVES]
    threes = [words[i : i + 3] for i in range(0, len(words), 3)]
    within = [three[k] for three in threes for k in generator.permutation(len(three))]
    among = [word for k in generator.permutation(len(threes)) for word in threes[k]]
    swapped = _moved(_moved(words, nouns, generator), adjectives, generator)
    return [" ".join(order) for order in (swapped, _moved(words, others, generator), within, among)]


def cleaned(caption: str, words: int = 30) -> str:
    """`caption` in lower case, without most punctuation, truncated to the given number of words."""
    return " ".join(re.sub(r'[.!"()*#:;~]', " ", caption.lower()).split()[:words])


def _moved(words: list[str], places: list[int], generator: np.random.Generator) -> list[str]:
    """Shuffle the words at `places`; the other words keep their positions."""
    moved = list(words)
    for place, source in zip(places, generator.permutation(places), strict=True):
        moved[place] = words[source]
    return moved
