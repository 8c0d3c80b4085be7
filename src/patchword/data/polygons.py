"""Fill polygons: the pixels inside the outlines of an object."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw

_FINE = 4  # Pillow fills every pixel that an outline touches, so the outline is drawn in this resolution first


def filled(polygons: Iterable[Sequence[float]], width: int, height: int) -> Bool[np.ndarray, "height width"]:
    """Return the pixels of which half or more is inside of one of the polygons.

    Args:
        polygons: The corners of each polygon, x0, y0, x1, y1, ... in pixels. They may lie outside of the image.
        width: The width of the image in pixels.
        height: The height of the image in pixels.
    """
    found = np.zeros((height, width), dtype=bool)
    for polygon in polygons:
        corners = np.asarray(polygon, dtype=float).reshape(-1, 2)
        left, top = np.clip(np.floor(corners.min(0)), 0, (width, height)).astype(int)
        right, bottom = np.clip(np.ceil(corners.max(0)), 0, (width, height)).astype(int)
        if left < right and top < bottom:
            fine = Image.new("L", (int(right - left) * _FINE, int(bottom - top) * _FINE))
            inner = ((corners - (left, top)) * _FINE - 0.5).flatten().tolist()  # Pillow's pixels have whole centers
            ImageDraw.Draw(fine).polygon(inner, fill=255)
            found[top:bottom, left:right] |= np.asarray(fine.reduce(_FINE)) >= 128
    return found
