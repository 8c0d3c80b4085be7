"""Make a caption false in one detail, by replacing what it says of one or two objects."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import numpy as np

from patchword.data.captions import pick
from patchword.data.concepts import Concept

Negative = Literal["colour", "noun", "exchange"]


class Vocabulary:
    """The concepts that captions may mention, found by noun and by colour.

    Args:
        concepts: All of them, without duplicates.
    """

    def __init__(self, concepts: Sequence[Concept]) -> None:
        self.by_noun: dict[str, list[Concept]] = defaultdict(list)
        self.by_colour: dict[str | None, list[Concept]] = defaultdict(list)
        self.by_name: dict[tuple[str, str | None], Concept] = {}
        for concept in concepts:
            self.by_noun[concept.noun].append(concept)
            self.by_colour[concept.colour].append(concept)
            self.by_name[concept.noun, concept.colour] = concept
        self._recoloured = {concept: self._in_other_colours(concept) for concept in concepts}

    def recoloured(self, concept: Concept) -> list[Concept]:
        """The same noun in its other colours; none if captions give `concept` no colour."""
        return self._recoloured[concept]

    def _in_other_colours(self, concept: Concept) -> list[Concept]:
        if concept.colour is None:
            return []
        return [c for c in self.by_noun[concept.noun] if c.colour not in (None, concept.colour)]

    def falsify(self, kind: Negative, scene: Sequence[Concept], rng: np.random.Generator) -> list[Concept] | None:
        """`scene` with one detail that is false of it, or None if it offers no detail of this kind.

        Args:
            kind: What is wrong: `colour`, one object has a colour in which it is not there; `noun`, one object is
                replaced by a thing that is not there; `exchange`, two objects have each other's colours. An
                exchange keeps all words: a text tower without word order cannot tell it from the truth.
            scene: The concepts in the order of the caption.
            rng: Draws one of the possible replacements.
        """
        if kind == "exchange":
            return self._exchange(scene, rng)
        nouns = {concept.noun for concept in scene}
        for i in rng.permutation(len(scene)):
            if kind == "colour":
                options = [c for c in self.recoloured(scene[i]) if c not in scene]
            else:
                options = [c for c in self.by_colour[scene[i].colour] if c.noun not in nouns]
            if options:
                return [*scene[:i], pick(options, rng), *scene[i + 1 :]]
        return None

    def _exchange(self, scene: Sequence[Concept], rng: np.random.Generator) -> list[Concept] | None:
        options = []
        for i, j in combinations(range(len(scene)), 2):
            a, b = scene[i], scene[j]
            if None in (a.colour, b.colour) or a.noun == b.noun or a.colour == b.colour:
                continue
            swapped = {i: self.by_name.get((a.noun, b.colour)), j: self.by_name.get((b.noun, a.colour))}
            if None not in swapped.values() and not set(swapped.values()) & set(scene):
                options.append([swapped.get(k) or concept for k, concept in enumerate(scene)])
        return pick(options, rng) if options else None
