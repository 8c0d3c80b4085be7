"""Concepts and sprites that need no font: rectangles without corner pixels, with or without one of nine colors."""

import numpy as np

from patchword.data.scenes.concepts import TINTS, Concept

NOUNS = ("brick", "egg", "island", "tile", "urn", "wall", "yard")
SHAPES = [Concept(noun, color, noun, TINTS.get(color or "")) for noun in NOUNS for color in (None, *TINTS)]


def draw(concept: Concept, size: int) -> np.ndarray:
    """Draw a filled rectangle with transparent corners whose height depends on the noun."""
    height = max(3, round(size * (0.5 + 0.05 * NOUNS.index(concept.noun))))
    picture = np.full((height, size, 4), 255, dtype=np.uint8)
    picture[..., :3] = concept.tint or (20, 20, 20)
    picture[[0, 0, -1, -1], [0, -1, 0, -1], 3] = 0
    return picture
