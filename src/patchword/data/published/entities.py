"""Flickr30k Entities (Plummer et al., IJCV 2017, arXiv 1505.04870): phrases of captions, with boxes.

The folders `Sentences` and `Annotations`, of annotations.zip, have one file per image.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from patchword.data.pixels import Box
from patchword.errors import UserError
from patchword.files.plain_xml import read_xml
from patchword.files.published import read_lines, require_file

_MARKUP = re.compile(r"\[/EN#(\d+)((?:/[^\s/\]]+)+) ([^\[\]]+)\]")


@dataclass(frozen=True)
class Entity:
    """A phrase of a caption.

    Attributes:
        caption: The index of the caption.
        start: The first character of the phrase in its caption.
        end: One past the last character of the phrase.
        types: The types of the phrase, such as `people`; `notvisual` for phrases that name nothing visible.
        boxes: Left, top, right, bottom of each box in pixels, right and bottom exclusive; empty for phrases that have
            no box (scenes, objects that are not in the picture, phrases that are not visual).
    """

    caption: int
    start: int
    end: int
    types: tuple[str, ...]
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Annotated:
    """The annotations of an image.

    Attributes:
        size: The width and height of the image, to which the boxes refer.
        captions: The captions without markup.
        entities: The phrases, caption by caption.
    """

    size: tuple[int, int]
    captions: list[str]
    entities: list[Entity]

    def row(self) -> dict[str, Any]:
        """Return the columns of a row. The type of a phrase is the first one of its types."""
        phrases = [
            {"caption": e.caption, "start": e.start, "end": e.end, "boxes": [*map(list, e.boxes)], "type": e.types[0]}
            for e in self.entities
        ]
        return {"caption": self.captions, "phrases": phrases, "size": [*self.size]}


def files(root: Path, name: str) -> list[Path]:
    """Return the two files of an image; none if it is not annotated.

    Raises:
        UserError: If only one of the two files exists.
    """
    sentences, boxes = root / f"Sentences/{name}.txt", root / f"Annotations/{name}.xml"
    if sentences.is_file() != boxes.is_file():
        one, other = (sentences, boxes) if sentences.is_file() else (boxes, sentences)
        raise UserError(f"there is {one}, but no {other}: unpack annotations.zip of Flickr30k Entities")
    return [sentences, boxes] if sentences.is_file() else []


def files_of_all(root: Path, names: Iterable[str]) -> list[Path]:
    """Return the files of several images, and report how many images are not annotated if others are."""
    found = [files(root, name) for name in names]
    if without := found.count([]) if any(found) else 0:
        rank_zero_info(f"{without} of {len(found)} images have no file in {root / 'Sentences'}: they have no phrases")
    return [path for of_image in found for path in of_image]


def captioned(root: Path, name: str, captions: list[str], source: Path) -> dict[str, Any]:
    """Return the columns `caption`, `phrases` and `size` of an image.

    Args:
        root: The folder with `Sentences` and `Annotations`, which need not exist.
        name: The number of the image.
        captions: The captions if the image is not annotated. If it is annotated, the captions are those of its
            annotations, because phrases are positions in them.
        source: The file with `captions`.

    Raises:
        UserError: If the image has no captions, or a file is not as published.
    """
    if files(root, name):
        return read(root, name).row()
    if not captions:
        raise UserError(f"{source} has no captions of the image {name}, and there is no {root}/Sentences/{name}.txt")
    return {"caption": captions} | ({"phrases": []} if (root / "Sentences").is_dir() else {})


def read(root: Path, name: str) -> Annotated:
    """Read the captions, phrases and boxes of an image.

    Args:
        root: The folder with `Sentences` and `Annotations`.
        name: The number of the image.

    Raises:
        UserError: If a file is missing or not as published; the message names the file and the line.
    """
    size, boxes = read_boxes(require_file(root, f"Annotations/{name}.xml", "boxes, of annotations.zip"))
    path = require_file(root, f"Sentences/{name}.txt", "captions, of annotations.zip")
    captions, entities = [], []
    for caption, (number, line) in enumerate(read_lines(path, comments=False)):
        text, phrases = read_sentence(line, f"{path}, line {number}")
        captions.append(text)
        for start, end, chain, types in phrases:
            entities.append(Entity(caption, start, end, types, tuple(boxes.get(chain, ()))))
    return Annotated(size, captions, entities)


def read_sentence(line: str, place: str) -> tuple[str, list[tuple[int, int, str, tuple[str, ...]]]]:
    """Parse the markup of a caption.

    Args:
        line: A line such as "[/EN#1/people Two men] in [/EN#2/clothing/other hats] ."
        place: The file and line, for messages.

    Returns:
        The caption without markup, and its phrases: start, end (exclusive), chain id, and types.

    Raises:
        UserError: If the markup is not as published.
    """
    text, phrases, last = "", [], 0
    for match in _MARKUP.finditer(line):
        text += line[last : match.start()]
        chain, types, words = match.groups()
        phrases.append((len(text), len(text) + len(words), chain, tuple(types.split("/")[1:])))
        text += words
        last = match.end()
    text += line[last:]
    if "[/EN#" in text:
        raise UserError(
            f"{place}: a phrase must have the form [/EN#12/people Two men], not {text[text.index('[/EN#') :][:40]!r}"
        )
    return text, phrases


def read_boxes(path: Path) -> tuple[tuple[int, int], dict[str, list[Box]]]:
    """Read the width and height of an image, and the boxes of each chain of phrases, right and bottom exclusive.

    Published boxes count pixels from 1 and are inclusive.

    Raises:
        UserError: If the file is not XML, has a document type (which could define entities), or lacks a number.
    """
    root = read_xml(path)
    size = root.find("size")
    width, height = (_number(size, name, path) for name in ("width", "height"))
    boxes: dict[str, list[Box]] = {}
    for one in root.iter("object"):
        corners = one.find("bndbox")
        if corners is None:
            continue
        left, top, right, bottom = (_number(corners, name, path) for name in ("xmin", "ymin", "xmax", "ymax"))
        for name in one.iter("name"):
            boxes.setdefault((name.text or "").strip(), []).append((left - 1.0, top - 1.0, float(right), float(bottom)))
    return (width, height), boxes


def _number(element: Any, name: str, path: Path) -> int:
    text = None if element is None else element.findtext(name)
    try:
        return int(text or "")
    except ValueError:
        raise UserError(f"{path}: {name} must be a number, not {text!r}") from None
