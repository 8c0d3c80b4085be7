"""Write a scene's caption: one sentence that mentions every object once, with true relations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np

Box = tuple[int, int, int, int]
Item = TypeVar("Item")

LEADS = ("", "there is ", "here is ", "a picture of ", "an image of ", "an image showing ")


def _near(a: Box, b: Box) -> bool:
    gap = max(a[0] - b[2], b[0] - a[2], a[1] - b[3], b[1] - a[3])
    return 2 * gap <= max(a[2] - a[0], a[3] - a[1], b[2] - b[0], b[3] - b[1])


# For each relation, a function that tells whether "a <relation> b" is true for two boxes (left, top, right, bottom).
RELATIONS: dict[str, Callable[[Box, Box], bool]] = {
    "to the left of": lambda a, b: a[2] <= b[0],
    "to the right of": lambda a, b: a[0] >= b[2],
    "above": lambda a, b: a[3] <= b[1],
    "below": lambda a, b: a[1] >= b[3],
    "next to": _near,
}


@dataclass(frozen=True)
class Sentence:
    """A caption without its noun phrases.

    Attributes:
        lead: The text before the first phrase.
        links: The text between each phrase and the next one.
    """

    lead: str
    links: list[str]

    def say(self, phrases: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
        """Return the caption with `phrases` filled in, and the first and one past the last character of each phrase."""
        text = self.lead
        spans = []
        for phrase, link in zip(phrases, [*self.links, ""], strict=True):
            spans.append((len(text), len(text) + len(phrase)))
            text += phrase + link
        return text, spans


def write(boxes: Sequence[Box], rng: np.random.Generator) -> Sentence:
    """Write an unambiguous sentence about objects in this order; no object is part of two relations."""
    links: list[str] = []
    related = False
    for a, b in pairwise(boxes):
        true = [] if related else [relation for relation, holds in RELATIONS.items() if holds(a, b)]
        related = bool(true) and rng.random() < 0.7
        links.append(f" {pick(true, rng)} " if related else ", ")
    if ", " in links:
        last = len(links) - 1 - links[::-1].index(", ")
        links[last] = " and " if set(links) == {", "} else ", and "
    return Sentence(pick(LEADS, rng), links)


def pick(items: Sequence[Item], rng: np.random.Generator) -> Item:
    """Draw one of `items` uniformly; much faster than `rng.choice`."""
    return items[int(rng.random() * len(items))]
