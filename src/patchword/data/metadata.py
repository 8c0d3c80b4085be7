"""Read and check a `metadata.jsonl`: one JSON object per line, each an image with its captions."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchword.data.safe_path import inside
from patchword.errors import InputError


@dataclass(frozen=True)
class Region:
    """A phrase of a caption and, where it names one, the box of its object.

    Attributes:
        caption: Index of the caption.
        start: First character of the phrase.
        end: One past its last character.
        box: Left, top, right, bottom in pixels of the upright image, or None.
    """

    caption: int
    start: int
    end: int
    box: tuple[float, float, float, float] | None


@dataclass(frozen=True)
class Row:
    """One line of the metadata.

    Attributes:
        id: Which image of the folder it is, from 0.
        place: File and line, for messages.
        image: The image file.
        captions: One or more captions.
        regions: Phrases of all captions.
        negatives: Wrong versions of the first caption.
    """

    id: int
    place: str
    image: Path
    captions: list[str]
    regions: list[Region]
    negatives: list[str]


def read_metadata(folder: Path) -> list[Row]:
    """All rows of `folder/metadata.jsonl`; image files are not touched.

    Raises:
        InputError: If the folder or the file is missing, or a line is wrong; the message names file and line.
    """
    path = folder / "metadata.jsonl"
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: create it with images and a metadata.jsonl")
    if not path.is_file():
        raise InputError(f"there is no file {path}: it must hold one JSON object per image with file_name and caption")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error}): save it as UTF-8") from None
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            rows.append(_row(len(rows), folder, f"{path}, line {number}", line))
    if not rows:
        raise InputError(f"{path} is empty: it must hold one JSON object per image with file_name and caption")
    return rows


def _row(id: int, folder: Path, place: str, line: str) -> Row:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{place} is not JSON ({error}): write one object per line") from None
    if not isinstance(record, dict):
        raise InputError(f"{place} is not a JSON object: write {{...}} with file_name and caption")
    captions = _captions(record, place)
    return Row(
        id=id,
        place=place,
        image=_image(record, folder, place),
        captions=captions,
        regions=read_regions(record.get("phrases", []), captions, place),
        negatives=_strings(record.get("negatives", []), f"{place}: negatives"),
    )


def _image(record: dict[str, Any], folder: Path, place: str) -> Path:
    if "file_name" not in record:
        raise InputError(f"{place} has no file_name: add the image's path relative to {folder}")
    name = record["file_name"]
    if not isinstance(name, str) or not name:
        raise InputError(f"{place}: file_name must be a string, not {name!r}")
    return inside(folder, name, place)


def _captions(record: dict[str, Any], place: str) -> list[str]:
    if ("caption" in record) == ("captions" in record):
        raise InputError(f"{place} must have either caption (a string) or captions (a list of strings)")
    if "caption" in record:
        return _strings([record["caption"]], f"{place}: caption")
    captions = _strings(record["captions"], f"{place}: captions")
    if not captions:
        raise InputError(f"{place}: captions is an empty list: add a caption or remove the line")
    return captions


def _strings(value: Any, name: str) -> list[str]:
    if not isinstance(value, list):
        raise InputError(f"{name} must be a list of strings, not {value!r}")
    for item in value:
        if not isinstance(item, str):
            raise InputError(f"{name} must be text, not {item!r}: put it in quotation marks")
    return value


def read_regions(regions: Any, captions: list[str], place: str) -> list[Region]:
    """The phrases of an image: objects with `start` and `end`, and, if they have them, `box` and `caption`.

    Raises:
        InputError: If they are not as they should be; the message begins with `place`.
    """
    if not isinstance(regions, list):
        raise InputError(f"{place}: phrases must be a list of objects")
    return [_region(region, captions, f"{place}, phrase {i}") for i, region in enumerate(regions)]


def _region(region: Any, captions: list[str], place: str) -> Region:
    if not isinstance(region, dict) or not {"start", "end"} <= region.keys():
        raise InputError(f"{place} must be an object with start and end, and box if it has one, not {region!r}")
    caption = region.get("caption") or 0  # tables hold null where there is none
    if type(caption) is not int or not 0 <= caption < len(captions):
        raise InputError(f"{place}: caption must be an index from 0 to {len(captions) - 1}, not {caption!r}")
    start, end, box = region["start"], region["end"], region.get("box")
    length = len(captions[caption])
    if type(start) is not int or type(end) is not int or not 0 <= start < end <= length:
        raise InputError(
            f"{place}: start {start!r} and end {end!r} do not lie inside its caption of {length} characters"
        )
    if box is None:
        return Region(caption, start, end, None)
    if not isinstance(box, list) or len(box) != 4 or not all(_finite(x) for x in box):
        raise InputError(f"{place}: box must be four numbers [left, top, right, bottom], not {box!r}")
    if not (box[0] < box[2] and box[1] < box[3]):
        raise InputError(f"{place}: box {box} must have left < right and top < bottom")
    return Region(caption, start, end, (float(box[0]), float(box[1]), float(box[2]), float(box[3])))


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
