"""Place sprites on a canvas, draw them, and compute their visible pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

from patchword.data.scenes.captions import Box
from patchword.data.scenes.concepts import Concept

LONGEST = 0.42  # longer side of the largest object, as a fraction of the image's side
STEP = 0.93  # ratio of one size to the next; there are few sizes, so that sprites are drawn once and reused
SIZES = 8  # from 0.42 down to 0.25 of the image's side

Sprite = Callable[[Concept, int], UInt8[np.ndarray, "h w 4"]]


@dataclass(frozen=True, eq=False)
class Stamp:
    """A sprite in a form that is fast to paste.

    Attributes:
        ink: Colors from 0 to 255, multiplied by the opacity. Shape [3, h, w].
        clear: One minus the opacity, from 0 to 1. Shape [h, w].
        solid: True where the opacity exceeds one half. Shape [h, w].
    """

    ink: Float[np.ndarray, "3 h w"]
    clear: Float[np.ndarray, "h w"]
    solid: Bool[np.ndarray, "h w"]


def stamp(picture: UInt8[np.ndarray, "h w 4"]) -> Stamp:
    """Convert an RGBA picture to a stamp."""
    opacity = picture[..., 3].astype(np.float32) / 255
    ink = picture[..., :3].transpose(2, 0, 1) * opacity
    return Stamp(ink, 1 - opacity, opacity > 0.5)


def side(image_size: int, step: int) -> int:
    """Return the longer side in pixels of an object that is `step` sizes smaller than the largest."""
    return max(4, round(LONGEST * STEP**step * image_size))


def place(stamps: Sequence[Stamp], size: int, overlap: float, rng: np.random.Generator) -> list[Box] | None:
    """Draw a random box for each object in an image of `size` pixels; None if one cannot be placed in 20 tries.

    Two boxes share at most the fraction `overlap` of the smaller one, from 0 (no overlap) to 1 (any overlap).
    """
    boxes: list[Box] = []
    for it in stamps:
        height, width = it.solid.shape
        for x, y in rng.random((20, 2)).tolist():
            left, top = int(x * (size - width + 1)), int(y * (size - height + 1))
            box = (left, top, left + width, top + height)
            if all(_fits(box, other, overlap) for other in boxes):
                boxes.append(box)
                break
        else:
            return None
    return boxes


def _fits(a: Box, b: Box, overlap: float) -> bool:
    if a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]:
        return True
    shared = (min(a[2], b[2]) - max(a[0], b[0])) * (min(a[3], b[3]) - max(a[1], b[1]))
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return shared <= overlap * smaller


def visible(stamps: Sequence[Stamp], boxes: Sequence[Box], size: int) -> Bool[np.ndarray, "n H W"]:
    """Return the visible pixels of each object; later objects cover earlier ones."""
    masks = np.zeros((len(stamps), size, size), dtype=bool)
    for i, (it, (left, top, right, bottom)) in enumerate(zip(stamps, boxes, strict=True)):
        masks[i, top:bottom, left:right] = it.solid
        for earlier in masks[:i, top:bottom, left:right]:
            earlier[it.solid] = False
    return masks


def paint(
    canvas: Float[np.ndarray, "3 H W"], stamps: Sequence[Stamp], boxes: Sequence[Box]
) -> UInt8[np.ndarray, "3 H W"]:
    """Draw the objects on `canvas`, which is overwritten, and return it as uint8."""
    for it, (left, top, right, bottom) in zip(stamps, boxes, strict=True):
        patch = canvas[:, top:bottom, left:right]
        patch *= it.clear
        patch += it.ink
    return canvas.astype(np.uint8)
