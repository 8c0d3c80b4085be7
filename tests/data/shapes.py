"""Concepts and sprites that need no font: boxes with rounded corners cut off, in nine colours or none."""

import numpy as np

from patchword.data.concepts import TINTS, Concept

NOUNS = ("brick", "egg", "island", "tile", "urn", "wall", "yard")
SHAPES = [Concept(noun, colour, noun, TINTS.get(colour or "")) for noun in NOUNS for colour in (None, *TINTS)]


def draw(concept: Concept, size: int) -> np.ndarray:
    """A filled rectangle whose height depends on the noun, with transparent corners."""
    height = max(3, round(size * (0.5 + 0.05 * NOUNS.index(concept.noun))))
    picture = np.full((height, size, 4), 255, dtype=np.uint8)
    picture[..., :3] = concept.tint or (20, 20, 20)
    picture[[0, 0, -1, -1], [0, -1, 0, -1], 3] = 0
    return picture
