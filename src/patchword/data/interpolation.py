"""Stretch a few values over many pixels."""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import Float


@cache
def interpolation(size: int, cells: int) -> Float[np.ndarray, "size cells"]:
    """Weights that stretch `cells` values linearly over `size` pixels."""
    position = np.linspace(0, cells - 1, size)[:, None]
    return np.clip(1 - abs(position - np.arange(cells)), 0, 1).astype(np.float32)
