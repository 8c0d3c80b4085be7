"""Read phrases and their boxes from a column of users' data."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from patchword.data.batch import Phrase, around
from patchword.data.pixels import Box, View
from patchword.data.polygons import filled
from patchword.errors import UserError


@dataclass(frozen=True)
class Region:
    """A phrase of a caption and, if known, the boxes of the objects that it names.

    Attributes:
        caption: Index of the caption.
        start: First character of the phrase.
        end: One past the last character of the phrase.
        boxes: Left, top, right, bottom of each box in pixels of the upright image; empty if unknown.
        type: The category of the objects, such as `people` in Flickr30k Entities; None if unknown.
        polygons: The outlines of the objects in the boxes, each x0, y0, x1, y1, ... in pixels; empty if unknown.
    """

    caption: int
    start: int
    end: int
    boxes: tuple[Box, ...] = ()
    type: str | None = None
    polygons: tuple[tuple[float, ...], ...] = ()

    def scaled(self, x: float, y: float) -> Region:
        """Return the region in an image whose width is `x` times, and whose height is `y` times that of its image."""
        boxes = tuple((a * x, b * y, c * x, d * y) for a, b, c, d in self.boxes)
        return replace(self, boxes=boxes, polygons=tuple(moved(one, 0.0, 0.0, x, y) for one in self.polygons))

    def phrase(self, view: View) -> Phrase | None:
        """Return the phrase with its boxes in pixels of `view`; None if it has boxes and all are outside of `view`."""
        boxes = [box for one in self.boxes if (box := view.box(one)) is not None]
        if boxes:
            phrase = Phrase.of_boxes(self.start, self.end, boxes, view.size, self.type)
            return replace(phrase, mask=self._mask(view)) if self.polygons else phrase
        return None if self.boxes else Phrase(self.start, self.end, type=self.type)

    def training_phrase(self, view: View) -> Phrase:
        """Return the phrase with the smallest box around all its boxes in view, and without a mask."""
        boxes = [box for one in self.boxes if (box := view.box(one)) is not None]
        return Phrase(self.start, self.end, around(boxes) if boxes else None)

    def _mask(self, view: View) -> Bool[Tensor, "H W"]:
        left, top, _, _ = view.source
        outlines = (moved(one, left, top, *view.scale) for one in self.polygons)
        return torch.from_numpy(filled(outlines, view.size, view.size))


def moved(polygon: tuple[float, ...], left: float, top: float, x: float, y: float) -> tuple[float, ...]:
    """Return a polygon with `left` and `top` as its origin, and then scaled by `x` and `y`."""
    return tuple((at - (top if i % 2 else left)) * (y if i % 2 else x) for i, at in enumerate(polygon))


def read_regions(regions: Any, captions: list[str]) -> list[Region]:
    """Read the phrases of an image from a list of objects.

    Each object has `start` and `end` (characters of the caption) and, if known, `box` or a list `boxes` (left, top,
    right, bottom in pixels), next to boxes also `polygons` (lists x0, y0, x1, y1, ... in pixels), `type`, and
    `caption`, the index of its caption.

    Raises:
        UserError: If the list is malformed; the message names the phrase, not the image.
    """
    if not isinstance(regions, list):
        raise UserError("phrases must be a list of objects")
    return [_region(region, captions, f"phrase {i}") for i, region in enumerate(regions)]


def _region(region: Any, captions: list[str], place: str) -> Region:
    if not isinstance(region, dict) or not {"start", "end"} <= region.keys():
        raise UserError(f"{place} must be an object with start, end and, if known, box, not {region!r:.200}")
    caption = region.get("caption") or 0  # in tables, null stands for a missing value
    if type(caption) is not int or not 0 <= caption < len(captions):
        raise UserError(f"{place}: caption must be an index from 0 to {len(captions) - 1}, not {caption!r:.40}")
    start, end, kind = region["start"], region["end"], region.get("type")
    length = len(captions[caption])
    if type(start) is not int or type(end) is not int or not 0 <= start < end <= length:
        raise UserError(
            f"{place}: start {start!r:.40} and end {end!r:.40} are not inside its caption of {length} characters"
        )
    if not isinstance(kind, str | None):
        raise UserError(f"{place}: type must be a text, not {kind!r:.40}")
    boxes = region.get("boxes") or []
    if not isinstance(boxes, list):
        raise UserError(f"{place}: boxes must be a list of boxes, not {boxes!r:.40}")
    if region.get("box") is not None:
        boxes = [region["box"], *boxes]
    polygons = region.get("polygons") or []
    if not isinstance(polygons, list) or (polygons and not boxes):
        raise UserError(f"{place}: polygons must be a list of lists of numbers, next to the boxes around them")
    outlines = tuple(_polygon(one, place) for one in polygons)
    return Region(caption, start, end, tuple(_box(box, place) for box in boxes), kind or None, outlines)


def _polygon(polygon: Any, place: str) -> tuple[float, ...]:
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2 or not all(map(_finite, polygon)):
        raise UserError(f"{place}: a polygon must be six or more numbers [x0, y0, x1, y1, ...], not {polygon!r:.80}")
    return tuple(map(float, polygon))


def _box(box: Any, place: str) -> Box:
    if not isinstance(box, list) or len(box) != 4 or not all(_finite(x) for x in box):
        raise UserError(f"{place}: box must be four numbers [left, top, right, bottom], not {box!r:.80}")
    if not (box[0] < box[2] and box[1] < box[3]):
        raise UserError(f"{place}: box {box} must have left < right and top < bottom")
    return float(box[0]), float(box[1]), float(box[2]), float(box[3])


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
