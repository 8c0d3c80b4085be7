"""Flickr30k Entities (Plummer et al., IJCV 2017, arXiv 1505.04870): phrases of captions, and boxes for them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

from patchword.data.pixels import Box
from patchword.errors import InputError
from patchword.suites.files import require_file
from patchword.suites.grounding import GroundedImage, PhraseGrounding, Region
from patchword.suites.prompts import read_lines

_MARKUP = re.compile(r"\[/EN#(\d+)((?:/[^\s/\]]+)+) ([^\[\]]+)\]")


class Flickr30kEntities(PhraseGrounding):
    """Phrase grounding on Flickr30k Entities.

    Args:
        root: The folder with `Annotations`, `Sentences` and the lists `train.txt`, `val.txt`, `test.txt`.
        split: Which list.
        images: The folder of the images; null for `flickr30k-images` in `root`.
        options: What every suite takes; see `PhraseGrounding`.
    """

    data_set = "Flickr30k Entities"
    groups = ("people", "clothing", "bodyparts", "animals", "vehicles", "instruments", "scene", "other")
    reported = {  # noqa: RUF012 - a ClassVar
        "pointing": (
            "pointing",
            "Share of phrases whose map (the mean of the objective's own maps of its tokens), upsampled bilinearly, "
            "has its highest pixel in any box of the phrase.",
        ),
        "r@1_any": (
            "r@1_any",
            "Share of phrases for which the box round the largest component of the map's pixels at or above the middle "
            "of its range has an IoU of 0.5 or more with any box of the phrase.",
        ),
        "r@1_merged": (
            "r@1_merged",
            "Share of phrases for which the box that r@1_any takes has an IoU of 0.5 or more with the box round all "
            "boxes of the phrase.",
        ),
    }

    def __init__(
        self,
        root: str,
        split: Literal["train", "val", "test"] = "test",
        images: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        self.split = split
        self.folder = self.root / "flickr30k-images" if images is None else Path(images)

    @property
    def key(self) -> str:
        """With the split."""
        return f"flickr30k_entities_{self.split}"

    def images(self) -> list[GroundedImage]:
        """Read sentences and boxes of every image of the split; phrases without a box are counted and left out."""
        listed = require_file(self.root, f"{self.split}.txt", "of github.com/BryanPlummer/flickr30k_entities")
        found = []
        for number, name in read_lines(listed):
            if not name.isascii() or not name.isdigit():
                raise InputError(f"{listed}, line {number}: must be the number of an image, not {name!r}")
            found.append(self._image(name))
        return found

    def _image(self, name: str) -> GroundedImage:
        size, boxes = read_boxes(require_file(self.root, f"Annotations/{name}.xml", "boxes, of annotations.zip"))
        path = require_file(self.root, f"Sentences/{name}.txt", "captions, of annotations.zip")
        captions, regions, unboxed = [], [], 0
        for caption, (number, line) in enumerate(read_lines(path, comments=False)):
            text, phrases = read_sentence(line, f"{path}, line {number}")
            captions.append(text)
            for start, end, chain, types in phrases:
                if chain in boxes:
                    regions.append(Region(caption, start, end, tuple(boxes[chain]), types))
                else:
                    unboxed += 1
        return GroundedImage(int(name), self.folder / f"{name}.jpg", size, tuple(captions), tuple(regions), unboxed)


def read_sentence(line: str, place: str) -> tuple[str, list[tuple[int, int, str, tuple[str, ...]]]]:
    """A caption without its markup, and its phrases: first and one past the last character, chain id, and types.

    Args:
        line: Such as "[/EN#1/people Two men] in [/EN#2/clothing/other hats] ."
        place: What messages begin with.

    Raises:
        InputError: If some of the markup is not as published.
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
        raise InputError(
            f"{place}: a phrase must be as [/EN#12/people Two men], not {text[text.index('[/EN#') :][:40]!r}"
        )
    return text, phrases


def read_boxes(path: Path) -> tuple[tuple[int, int], dict[str, list[Box]]]:
    """Width and height of an image, and the boxes of each chain of phrases, right and bottom exclusive.

    Published boxes count pixels from 1, and include the last ones.

    Raises:
        InputError: If the file is no XML, has a document type (which could define entities), or lacks a number.
    """
    parser = ElementTree.XMLParser(target=_Plain())
    try:
        parser.feed(path.read_bytes())
        root = parser.close()
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise InputError(f"{path} is not XML as published ({error})") from error
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


class _Plain(ElementTree.TreeBuilder):
    """Elements alone: a document type could define entities, one inside the other, that fill the memory."""

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        raise ValueError("it has a document type, which published files do not have")


def _number(element: Any, name: str, path: Path) -> int:
    text = None if element is None else element.findtext(name)
    try:
        return int(text or "")
    except ValueError:
        raise InputError(f"{path}: {name} must be a number, not {text!r}") from None
