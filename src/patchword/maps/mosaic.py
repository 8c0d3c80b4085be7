"""A small picture of phrase maps that is drawn in milliseconds, for a look at them during training."""

from __future__ import annotations

import textwrap
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from patchword.errors import UserError
from patchword.files.atomic_write import atomic_write
from patchword.maps.alignment import Alignment
from patchword.maps.phrases import upsample
from patchword.maps.plots import COLORS, OPACITY, clean, light_gray

# All sizes are in pixels.
_SIDE = 160  # longer side of an image
_LABEL = 110  # width of the column of phrases
_GAP = 4
_LINE = 16  # height of a line of text
_FONT = 12
_LETTER = 7  # width of a letter


def mosaic(alignment: Alignment, rows: int) -> Image.Image:
    """Draw one row for each of the first phrases: the phrase, the image, and its map from each source over the image.

    As in `plots.overlay`, the colors of a map range from its lowest to its highest patch, and objects are outlined.
    There are no color scales. Of a map that is not finite, only the image is drawn.

    Args:
        alignment: One or more phrases with their maps.
        rows: The largest number of phrases.
    """
    height, width = alignment.pixels.shape[1:]
    high, wide = (max(1, round(_SIDE * side / max(height, width))) for side in (height, width))
    image = interpolate(alignment.pixels[None], (high, wide), mode="bilinear", antialias=True)[0].permute(1, 2, 0)
    pixels = image.contiguous().numpy()
    gray = light_gray(pixels)
    words, titles = alignment.words[:rows], ["image", *alignment.maps]
    across = _LABEL + len(titles) * (wide + _GAP)
    lines = textwrap.wrap(clean(alignment.caption), across // _LETTER)
    top = _LINE * (len(lines) + 1) + _GAP
    canvas = np.full((top + len(words) * (high + _GAP), across, 3), 255, dtype=np.uint8)
    for row in range(len(words)):
        tiles = [pixels, *(_overlaid(maps[row], alignment.grid, gray) for maps in alignment.maps.values())]
        for column, tile in enumerate(tiles):
            shown = tile if alignment.masks is None else _outlined(tile, alignment.masks[row])
            y, x = top + row * (high + _GAP), _LABEL + column * (wide + _GAP)
            canvas[y : y + high, x : x + wide] = shown
    picture = Image.fromarray(canvas)
    texts = {(_GAP, number * _LINE): line for number, line in enumerate(lines)}
    texts |= {(_LABEL + n * (wide + _GAP), top - _LINE - _GAP): title for n, title in enumerate(titles)}
    for row, word in enumerate(words):
        room = max(1, high // _LINE)
        texts[_GAP, top + row * (high + _GAP)] = textwrap.fill(clean(word), 15, max_lines=room, placeholder=" …")
    for place, text in texts.items():
        ImageDraw.Draw(picture).multiline_text(place, text, fill="black", font=_font(), spacing=2)
    return picture


def save_mosaic(alignment: Alignment, rows: int, path: Path) -> None:
    """Write a `mosaic` as a PNG file with 256 colors, which is a third as large as one with all colors.

    Raises:
        UserError: If the file cannot be written.
    """
    picture = mosaic(alignment, rows).quantize(256, method=Image.Quantize.FASTOCTREE)
    try:
        with atomic_write(path, "wb") as file:
            picture.save(file, format="PNG")
    except OSError as error:
        raise UserError(f"cannot write the picture {path}: {error.strerror}") from error


def _overlaid(map: Float[Tensor, " P"], grid: tuple[int, int], gray: UInt8[np.ndarray, "h w 3"]) -> np.ndarray:
    """The map over the gray image."""
    if not map.isfinite().all():
        return gray
    low, high = map.min(), map.max()
    large = upsample((map[None] - low) / (high - low).clamp_min(1e-30), grid, gray.shape[:2])[0]
    colors = _colors()[(large * 255).round().long().clamp(0, 255).numpy()]
    return (OPACITY * colors + (1 - OPACITY) * gray).astype(np.uint8)


def _outlined(tile: UInt8[np.ndarray, "h w 3"], mask: Bool[Tensor, "H W"]) -> UInt8[np.ndarray, "h w 3"]:
    """The tile with a white line inside the mask's border and a black line around it."""
    inside = interpolate(mask[None, None].float(), tile.shape[:2], mode="nearest")
    border = [max_pool2d(x, 3, 1, 1)[0, 0].bool().numpy() for x in (inside, 1 - inside)]
    own = inside[0, 0].bool().numpy()
    found = tile.copy()
    found[border[0] & ~own] = 0
    found[border[1] & own] = 255
    return found


@cache
def _colors() -> Float[np.ndarray, "256 3"]:
    import matplotlib

    return matplotlib.colormaps[COLORS](np.arange(256))[:, :3] * 255


@cache
def _font() -> Any:
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", _FONT)
