"""Make a caption false in one detail by changing one or two of its objects."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import numpy as np

from patchword.data.scenes.captions import pick
from patchword.data.scenes.concepts import Concept

Negative = Literal["color", "noun", "exchange"]


class Vocabulary:
    """The concepts that captions can mention, without duplicates, indexed by noun and by color."""

    def __init__(self, concepts: Sequence[Concept]) -> None:
        self.by_noun: dict[str, list[Concept]] = defaultdict(list)
        self.by_color: dict[str | None, list[Concept]] = defaultdict(list)
        self.by_name: dict[tuple[str, str | None], Concept] = {}
        for concept in concepts:
            self.by_noun[concept.noun].append(concept)
            self.by_color[concept.color].append(concept)
            self.by_name[concept.noun, concept.color] = concept
        self._recolored = {concept: self._in_other_colors(concept) for concept in concepts}

    def recolored(self, concept: Concept) -> list[Concept]:
        """Return the same noun in its other colors; an empty list if `concept` has no color."""
        return self._recolored[concept]

    def _in_other_colors(self, concept: Concept) -> list[Concept]:
        if concept.color is None:
            return []
        return [c for c in self.by_noun[concept.noun] if c.color not in (None, concept.color)]

    def falsify(self, kind: Negative, scene: Sequence[Concept], rng: np.random.Generator) -> list[Concept] | None:
        """Return `scene` with one false detail, or None if this kind of change is not possible.

        Args:
            kind: What is changed. With `color`, one object gets a color in which the scene does not show it. With
                `noun`, one object is replaced by a thing that is not in the scene. With `exchange`, two objects swap
                their colors; this keeps all words, so a text tower without word order cannot detect it.
            scene: The concepts in the order of the caption.
            rng: The source of random choices.
        """
        if kind == "exchange":
            return self._exchange(scene, rng)
        nouns = {concept.noun for concept in scene}
        for i in rng.permutation(len(scene)):
            if kind == "color":
                options = [c for c in self.recolored(scene[i]) if c not in scene]
            else:
                options = [c for c in self.by_color[scene[i].color] if c.noun not in nouns]
            if options:
                return [*scene[:i], pick(options, rng), *scene[i + 1 :]]
        return None

    def _exchange(self, scene: Sequence[Concept], rng: np.random.Generator) -> list[Concept] | None:
        options = []
        for i, j in combinations(range(len(scene)), 2):
            a, b = scene[i], scene[j]
            if None in (a.color, b.color) or a.noun == b.noun or a.color == b.color:
                continue
            swapped = {i: self.by_name.get((a.noun, b.color)), j: self.by_name.get((b.noun, a.color))}
            if None not in swapped.values() and not set(swapped.values()) & set(scene):
                options.append([swapped.get(k) or concept for k, concept in enumerate(scene)])
        return pick(options, rng) if options else None
