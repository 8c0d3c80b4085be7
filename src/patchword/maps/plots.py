"""Figures of phrase maps: an image, its phrases, and their maps from each source.

Figures are created without pyplot, so that drawing does not change global state and needs no display.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL.Image import Image
from torch import Tensor

from patchword.errors import UserError
from patchword.files.atomic_write import atomic_write
from patchword.files.printable import printable
from patchword.maps.phrases import upsample

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = "viridis"  # perceptually uniform and suitable for color-blind readers
OPACITY = 0.65  # opacity of a map over its image
DPI = 250  # resolution of a saved figure

# Sizes in inches; the font size is in points.
_SIDE = 1.3  # longer side of an image
_LABEL = 1.05  # width of the column of phrases
_SCALE = 0.64  # width of a color scale with its numbers
_GAP = 0.09
_TITLE = 0.22
_LINE = 0.15
_FONT = 8


def overlay(
    image: Tensor | np.ndarray | Image,
    maps: Tensor | Mapping[str, Tensor],
    words: Sequence[str],
    grid: tuple[int, int] | None = None,
    masks: Bool[Tensor, "N H W"] | None = None,
    caption: str = "",
) -> Figure:
    """Draw one row for each of N phrases: the image, then the phrase's map from each source over the image in gray.

    Maps are resized with bilinear interpolation, as in the metrics. Each map has its own color scale from its lowest to
    its highest patch, because sources have different units and phrases have different ranges.

    Args:
        image: RGB pixels from 0 to 255: a tensor [3, H, W], an array [H, W, 3] or a PIL image.
        maps: The maps, [N, P] or [N, h, w], or [P] for one phrase; or a dictionary of maps with one column per source.
        words: The N phrases, or one phrase as a string.
        grid: The rows and columns of flat maps. The default is a square grid.
        masks: True for the pixels of each phrase's object, which is outlined. Shape [N, H, W].
        caption: The title of the figure.

    Raises:
        ValueError: If there is no phrase, or a shape or type is invalid.
    """
    pixels = _pixels(image)
    phrases = [clean(word) for word in ([words] if isinstance(words, str) else words)]
    if not phrases:
        raise ValueError("there must be at least one phrase to draw")
    expected = [len(phrases), *pixels.shape[:2]]
    if masks is not None and list(masks.shape) != expected:
        raise ValueError(f"masks must have the shape {expected}, phrases by height by width, not {list(masks.shape)}")
    sources = maps if isinstance(maps, Mapping) else {"map": maps}
    squares = {name: _squares(name, values, len(phrases), grid) for name, values in sources.items()}
    outlines = [None] * len(phrases) if masks is None else list(masks.cpu().numpy())

    figure, panels = _layout(len(phrases), ["image", *squares], pixels.shape[1] / pixels.shape[0], caption)
    gray = light_gray(pixels)
    for row, (phrase, outline) in enumerate(zip(phrases, outlines, strict=True)):
        first, *others = panels[row]
        first.imshow(pixels)
        _write_label(first, phrase)
        for panel, values in zip(others, squares.values(), strict=True):
            panel.imshow(gray)
            _draw_map(panel, values[row], (pixels.shape[0], pixels.shape[1]))
        for panel in panels[row]:
            _draw_outline(panel, outline)
    return figure


def save(figure: Figure, path: str | Path) -> None:
    """Write `figure` as a PNG file, and create its folder. If this fails, an existing file remains unchanged.

    Raises:
        UserError: If the file cannot be written.
    """
    try:
        with atomic_write(path, "wb") as file:
            figure.savefig(file, format="png", dpi=DPI)
    except OSError as error:
        raise UserError(f"cannot write the figure {path}: {error.strerror}") from error


def _pixels(image: Tensor | np.ndarray | Image) -> UInt8[np.ndarray, "H W 3"]:
    if isinstance(image, Image):
        return np.asarray(image.convert("RGB"))
    if isinstance(image, Tensor):
        if image.dtype == torch.uint8 and image.ndim == 3 and len(image) == 3:
            return image.permute(1, 2, 0).cpu().numpy()
    elif image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        return image
    raise ValueError(
        "the image must be a uint8 tensor [3, H, W], a uint8 array [H, W, 3] or a PIL image, "
        f"not {type(image).__name__} {list(image.shape)} of {image.dtype}"
    )


def _squares(name: str, maps: Tensor, phrases: int, grid: tuple[int, int] | None) -> Float[Tensor, "N h w"]:
    """Return the maps of one source as grids, on the CPU in single precision."""
    maps = maps.detach().cpu().float()
    if maps.ndim == 1:
        maps = maps[None]
    if maps.ndim == 2:
        rows, columns = grid or (math.isqrt(maps.shape[1]),) * 2
        if rows * columns != maps.shape[1]:
            shape = f"a grid of {rows} x {columns}" if grid else "a square grid; pass grid=(rows, columns)"
            raise ValueError(f"the maps of {name} have {maps.shape[1]} patches, which do not fill {shape}")
        maps = maps.unflatten(1, (rows, columns))
    if maps.ndim != 3 or len(maps) != phrases or not maps.numel():
        raise ValueError(
            f"the maps of {name} must have the shape [{phrases}, patches] or [{phrases}, rows, columns] "
            f"for {phrases} phrases, not {list(maps.shape)}"
        )
    return maps


def light_gray(pixels: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """Return the brightness of the image, scaled to the upper half of the range."""
    brightness = pixels @ np.array([0.299, 0.587, 0.114])
    return np.repeat((127.5 + brightness / 2).astype(np.uint8)[..., None], 3, -1)


def _layout(rows: int, titles: Sequence[str], aspect: float, caption: str) -> tuple[Figure, list[list[Axes]]]:
    """Create an empty figure and its panels, row by row; sizes are in inches, so that all figures have equal fonts."""
    from matplotlib.figure import Figure

    wide, tall = _SIDE * min(aspect, 1), _SIDE * min(1 / aspect, 1)
    width = _LABEL + wide + _GAP + (len(titles) - 1) * (wide + _SCALE)
    lines = textwrap.wrap(clean(caption), int(width * 15))
    top = _GAP + _LINE * len(lines) + _TITLE
    height = top + rows * (tall + _GAP)
    figure = Figure(figsize=(width, height))
    if lines:
        figure.suptitle("\n".join(lines), y=1 - _GAP / height, va="top", fontsize=_FONT + 1, parse_math=False)
    panels: list[list[Axes]] = []
    for row in range(rows):
        bottom = height - top - row * (tall + _GAP) - tall
        panels.append([])
        for column, title in enumerate(titles):
            left = _LABEL + (wide + _GAP + (column - 1) * (wide + _SCALE) if column else 0)
            panel = figure.add_axes((left / width, bottom / height, wide / width, tall / height))
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_visible(False)
            if row == 0:
                panel.set_title(title, fontsize=_FONT, pad=4, parse_math=False)
            panels[row].append(panel)
    return figure, panels


def clean(text: str) -> str:
    """Return text from data as one line, with escapes for characters that cannot be printed."""
    return printable(" ".join(text.split()), 500)


def _write_label(panel: Axes, phrase: str) -> None:
    """Write a phrase to the left of its row, truncated to the height of the row."""
    room = panel.bbox.height / panel.figure.dpi + _GAP
    label = textwrap.fill(phrase, 15, max_lines=max(1, int(room / _LINE)), placeholder=" …")
    panel.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=_FONT, labelpad=5, parse_math=False)


def _draw_map(panel: Axes, values: Float[Tensor, "h w"], size: tuple[int, int]) -> None:
    """Draw one map over the content of `panel`, with its color scale."""
    if not values.isfinite().all():
        panel.text(0.5, 0.5, "not finite", ha="center", va="center", fontsize=_FONT, transform=panel.transAxes)
        return
    large = upsample(values.flatten()[None], (values.shape[0], values.shape[1]), size)[0]
    low, high = values.min().item(), values.max().item()
    drawn = panel.imshow(large.numpy(), cmap=COLORS, alpha=OPACITY, vmin=low, vmax=high, interpolation="bilinear")
    inch = panel.figure.dpi / panel.bbox.width
    bar = panel.figure.colorbar(drawn, cax=panel.inset_axes((1 + 0.05 * inch, 0, 0.065 * inch, 1)))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=_FONT - 1.5, length=0, pad=2)
    bar.set_ticks([low, high] if low < high else [low], labels=_numbers(low, high))
    if low < high:
        lowest, highest = bar.ax.get_yticklabels()
        lowest.set_verticalalignment("bottom")
        highest.set_verticalalignment("top")


def _numbers(low: float, high: float) -> list[str]:
    """Format the limits of a scale with two or three digits of their difference; one number if they are equal."""
    if low == high:
        return [f"{low:.3g}".replace("-", "−")]
    highest, spread = (math.floor(math.log10(x)) for x in (max(-low, high), high - low))
    if -3 <= highest < 5:
        texts = [f"{x:.{max(0, 2 - spread)}f}" for x in (low, high)]
    else:
        texts = [f"{x:.{max(1, highest - spread + 1)}e}".replace("e-0", "e-").replace("e+0", "e") for x in (low, high)]
    return [text.replace("-", "−") for text in texts]


def _draw_outline(panel: Axes, mask: Any) -> None:
    """Draw a thin outline around `mask`, white with a dark edge, so that it is visible on every color."""
    from matplotlib.patheffects import Normal, Stroke

    if mask is None or not mask.any():
        return
    padded = np.pad(mask, 1).astype(float)  # The padding closes the outlines of objects at the border of the image.
    y, x = (np.arange(-1, n + 1) for n in mask.shape)
    line = panel.contour(x, y, padded, levels=[0.5], colors="white", linewidths=0.8)
    line.set_path_effects([Stroke(linewidth=1.6, foreground="black"), Normal()])
    height, width = mask.shape
    panel.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
