"""Backgrounds: pastel colors, or textures (clouds, stripes, checks and dots) in two muted colors."""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import Float

from patchword.data.scenes.captions import pick

OCTAVES = (3, 6, 12, 24, 48)  # cells of noise along a side; each octave has half the strength of the previous one


def background(size: int, rng: np.random.Generator) -> Float[np.ndarray, "3 H W"]:
    """Draw a background in pastel colors from 0 to 255: a plain color, a gradient, or colored clouds."""
    cells, contrast = pick([(1, 0.0), (2, 40.0), (8, 40.0)], rng)
    base = 150 + 65 * rng.random((3, 1, 1), dtype=np.float32)
    noise = 2 * rng.random((3, cells, cells), dtype=np.float32) - 1
    weights = _interpolation(size, cells)
    return weights @ (base + contrast * noise) @ weights.T


@cache
def _interpolation(size: int, cells: int) -> Float[np.ndarray, "size cells"]:
    """Return weights that interpolate `cells` values linearly over `size` pixels."""
    position = np.linspace(0, cells - 1, size)[:, None]
    return np.clip(1 - abs(position - np.arange(cells)), 0, 1).astype(np.float32)


def texture(size: int, rng: np.random.Generator) -> Float[np.ndarray, "3 H W"]:
    """Draw a textured background of `size` x `size` pixels with values from 0 to 255.

    One of four patterns mixes two colors, and fine noise is added, so that a pixel's color alone does not show whether
    it belongs to the background.
    """
    pattern = pick([_clouds, _stripes, _checks, _dots], rng)(size, rng)
    colors = 255 * rng.random((2, 3, 1, 1), dtype=np.float32)
    mixed = colors[0] + (colors[1] - colors[0]) * pattern
    grain = 24 * rng.random((1, size, size), dtype=np.float32) - 12
    return np.clip(40 + 0.7 * mixed + grain, 0, 255)


def _clouds(size: int, rng: np.random.Generator) -> Float[np.ndarray, "H W"]:
    """Draw noise at several scales (fractal noise), rescaled to the range from 0 to 1."""
    total = np.zeros((size, size), dtype=np.float32)
    for octave, cells in enumerate(OCTAVES):
        weights = _interpolation(size, cells)
        total += weights @ rng.random((cells, cells), dtype=np.float32) @ weights.T / 2**octave
    low, high = total.min(), total.max()
    return (total - low) / (high - low)


def _stripes(size: int, rng: np.random.Generator) -> Float[np.ndarray, "H W"]:
    """Draw a wave in one direction, with soft or hard edges."""
    wave = _wave(size, np.pi * rng.random(), size * (0.05 + 0.25 * rng.random()))
    return _step(np.sin(wave + 6.3 * rng.random()), rng)


def _checks(size: int, rng: np.random.Generator) -> Float[np.ndarray, "H W"]:
    """Draw the product of two waves at right angles."""
    angle, period = np.pi * rng.random(), size * (0.06 + 0.2 * rng.random())
    return _step(np.sin(_wave(size, angle, period)) * np.sin(_wave(size, angle + np.pi / 2, period)), rng)


def _dots(size: int, rng: np.random.Generator) -> Float[np.ndarray, "H W"]:
    """Draw spots on a square grid."""
    angle, period = np.pi * rng.random(), size * (0.06 + 0.2 * rng.random())
    spots = np.cos(_wave(size, angle, period)) + np.cos(_wave(size, angle + np.pi / 2, period)) - 0.7
    return _step(spots, rng)


def _wave(size: int, angle: float, period: float) -> Float[np.ndarray, "H W"]:
    """Return the phase, at each pixel, of a wave with direction `angle` and a period of `period` pixels."""
    place = np.arange(size, dtype=np.float32) * np.float32(2 * np.pi / period)
    return np.float32(np.cos(angle)) * place + np.float32(np.sin(angle)) * place[:, None]


def _step(wave: Float[np.ndarray, "H W"], rng: np.random.Generator) -> Float[np.ndarray, "H W"]:
    """Map low values of the wave to 0 and high values to 1, with a random sharpness of the edge."""
    return np.clip(0.5 + np.float32(0.5 + 4 * rng.random()) * wave, 0, 1).astype(np.float32)
