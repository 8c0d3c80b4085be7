"""Backgrounds that are not plain: clouds of many sizes, stripes, checks and dots in two muted colours."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from patchword.data.captions import pick
from patchword.data.interpolation import interpolation

OCTAVES = (3, 6, 12, 24, 48)  # cells of noise along a side, each with half the strength of the one before


def texture(size: int, rng: np.random.Generator) -> Float[np.ndarray, "3 H W"]:
    """A textured background of `size` x `size` pixels, values in 0 to 255.

    One of four patterns mixes two colours, and fine noise lies over it, so that no pixel's colour alone tells what is
    background.
    """
    pattern = pick([_clouds, _stripes, _checks, _dots], rng)(size, rng)
    colours = 255 * rng.random((2, 3, 1, 1), dtype=np.float32)
    mixed = colours[0] + (colours[1] - colours[0]) * pattern
    grain = 24 * rng.random((1, size, size), dtype=np.float32) - 12
    return np.clip(40 + 0.7 * mixed + grain, 0, 255)


def _clouds(size: int, rng: np.random.Generator) -> Float[np.ndarray, "H W"]:
    """Noise at several scales (fractal noise), stretched to 0 to 1."""
    total = np.zeros((size, size), dtype=np.float32)
    for octave, cells in enumerate(OCTAVES):
        weights = interpolation(size, cells)
        total += weights @ rng.random((cells, cells), dtype=np.float32) @ weights.T / 2**octave
    low, high = total.min(), total.max()
    return (total - low) / (high - low)


def _stripes(size: int, rng: np.random.Generator) -> Float[np.ndarray, "H W"]:
    """A wave in one direction, from soft to hard edges."""
    return _step(np.sin(_phase(size, rng)), rng)


def _checks(size: int, rng: np.random.Generator) -> Float[np.ndarray, "H W"]:
    """Two waves at right angles."""
    angle, period = np.pi * rng.random(), size * (0.06 + 0.2 * rng.random())
    return _step(np.sin(_wave(size, angle, period)) * np.sin(_wave(size, angle + np.pi / 2, period)), rng)


def _dots(size: int, rng: np.random.Generator) -> Float[np.ndarray, "H W"]:
    """Spots on a square grid."""
    angle, period = np.pi * rng.random(), size * (0.06 + 0.2 * rng.random())
    spots = np.cos(_wave(size, angle, period)) + np.cos(_wave(size, angle + np.pi / 2, period)) - 0.7
    return _step(spots, rng)


def _phase(size: int, rng: np.random.Generator) -> Float[np.ndarray, "H W"]:
    return _wave(size, np.pi * rng.random(), size * (0.05 + 0.25 * rng.random())) + 6.3 * rng.random()


def _wave(size: int, angle: float, period: float) -> Float[np.ndarray, "H W"]:
    """The phase at each pixel of a wave that travels at `angle`, with `period` pixels."""
    place = np.arange(size, dtype=np.float32) * np.float32(2 * np.pi / period)
    return np.float32(np.cos(angle)) * place + np.float32(np.sin(angle)) * place[:, None]


def _step(wave: Float[np.ndarray, "H W"], rng: np.random.Generator) -> Float[np.ndarray, "H W"]:
    """0 where the wave is low, 1 where it is high; how sharp the edge is, is drawn."""
    return np.clip(0.5 + np.float32(0.5 + 4 * rng.random()) * wave, 0, 1).astype(np.float32)
