"""Every concept can be drawn with its size and color."""

import numpy as np

from patchword.data.scenes.concepts import CONCEPTS, TINTS
from patchword.data.scenes.sprites import sprite


def test_every_concept_is_drawn():
    """A glyph that is not in the font would give an empty picture."""
    for concept in CONCEPTS:
        picture = sprite(concept, 24)
        assert max(picture.shape[:2]) == 24
        assert picture.dtype == np.uint8
        assert (picture[..., 3] > 127).mean() > 0.08, concept.phrase


def test_all_pictures_differ():
    """Two names for one picture would be ambiguous."""
    seen = {}
    for concept in CONCEPTS:
        key = sprite(concept, 24).tobytes()
        assert key not in seen, f"{concept.phrase} looks like {seen.get(key)}"
        seen[key] = concept.phrase


def test_tint_is_the_color_named():
    """For example, the largest surface of a red thing is closer to red than to any other tint."""
    for concept in [c for c in CONCEPTS if c.tint is not None]:
        picture = sprite(concept, 96).astype(int)
        surface = picture[(picture[..., 3] > 250) & (picture[..., :3].max(-1) > 60)][:, :3]
        colors, counts = np.unique(surface, axis=0, return_counts=True)
        distance = {name: np.abs(colors[counts.argmax()] - rgb).sum() for name, rgb in TINTS.items()}
        assert min(distance, key=distance.get) == concept.color, concept.phrase


def test_outlines_stay_dark():
    """Without outlines, tinted things would be silhouettes."""
    for concept in [c for c in CONCEPTS if c.tint is not None]:
        picture = sprite(concept, 48).astype(int)
        assert ((picture[..., 3] > 250) & (picture[..., :3].max(-1) < 40)).mean() > 0.02, concept.phrase
