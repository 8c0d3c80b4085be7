"""Read JSON lists of images and captions in their published formats as rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from lightning.pytorch.utilities import rank_zero_info

from patchword.errors import UserError
from patchword.files.json_text import parse_json
from patchword.files.printable import printable

if TYPE_CHECKING:
    from datasets import Dataset

FORMS = (
    'a list of objects, an object on each line (.jsonl), COCO\'s "images" and "annotations", Karpathy\'s "images" with '
    '"sentences", or {file name: caption or captions}'
)

Row = dict[str, Any]
Selection = tuple[str, tuple[str, ...]]  # a field and the values of the rows that are read


class JsonRows:
    """Rows that are stored in a table as JSON text, so rows can differ in their fields and types.

    Args:
        table: A table whose column `row` contains the rows.
    """

    column_names: tuple[str, ...] = ()  # rows need not share any column

    def __init__(self, table: Dataset) -> None:
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, number: int) -> Row:
        row: Row = json.loads(self.table[number]["row"])
        return row

    def __iter__(self) -> Iterator[Row]:
        return (json.loads(row["row"]) for row in self.table)


def select(patterns: str | list[str], option: str) -> tuple[list[str], Selection | None]:
    """Split `FILE#FIELD=VALUE,VALUE` into file patterns and the selection of rows.

    Raises:
        UserError: If a selection is malformed, or if selections differ; the message begins with `option`.
    """
    split = [
        (one, "") if Path(one).exists() else tuple(one.rpartition("#")[::2]) if "#" in one else (one, "")
        for one in ([patterns] if isinstance(patterns, str) else patterns)
    ]
    chosen = {selection for _, selection in split}
    if len(chosen) > 1:
        raise UserError(f"{option}: all files must have the same selection after #, not {sorted(chosen)}")
    text = chosen.pop() if chosen else ""
    field, _, values = text.partition("=")
    if text and not (field and values):
        raise UserError(f"{option}: #{text} must name a field and its values, such as #split=train,restval")
    return [one for one, _ in split], (field, tuple(values.split(","))) if text else None


def as_table(
    read: Callable[..., Iterator[Row]], options: dict[str, Any], stamps: tuple[Any, ...]
) -> Iterator[dict[str, str]]:
    """Yield the rows of `read(**options)` as JSON text; `stamps` make the cache of `datasets` notice changed files."""
    for row in read(**options):
        yield {"row": json.dumps(row)}


def read_rows(files: list[str], selection: Selection | None) -> Iterator[Row]:
    """Yield the rows of JSON files, one file after the other.

    Args:
        files: Paths or addresses, compressed or not.
        selection: The rows to read; None for all.

    Raises:
        UserError: If a file is not JSON, has none of the `FORMS`, or has no selected row; the message names the file.
    """
    for file in files:
        if selection is None:
            yield from _rows(file, False)
            continue
        field, values = selection
        found = 0
        for row in _rows(file, True):
            if str(row.get(field)) in values:
                found += 1
                yield row
        if not found:
            raise UserError(f"{file} has no row whose {field} is {' or '.join(values)}")


def _rows(file: str, chosen: bool) -> Iterator[Row]:
    import fsspec

    try:
        with fsspec.open(file, "rt", encoding="utf-8-sig", compression="infer") as text:
            if ".jsonl" in file or ".ndjson" in file:
                yield from _of_lines(file, text)
                return
            first, rest = text.readline(), text.read()
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text ({error}): save it as UTF-8") from error
    lines = first.strip().startswith("{") and first.strip().endswith("}") and rest.strip()
    if lines:
        yield from _of_lines(file, [first, *rest.split("\n")])
    else:
        yield from _of_content(file, _parse(first + rest, file), chosen)


def _of_lines(file: str, lines: Iterable[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            row = _parse(line, f"{file}, line {number}")
            if not isinstance(row, dict):
                raise UserError(f"{file}, line {number}: the line must contain a JSON object, not {_shown(row)}")
            yield row


def _parse(text: str, place: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise UserError(f"{place} is not valid JSON ({error})") from error


def _of_content(file: str, content: Any, chosen: bool) -> Iterator[Row]:
    """Return the rows of a file that contains one JSON value."""
    if isinstance(content, list):
        wrong = next((i for i, row in enumerate(content) if not isinstance(row, dict)), None)
        if wrong is not None:
            raise UserError(f"{file}: item {wrong} of its list must be an object, not {_shown(content[wrong])}")
        return iter(content)
    if isinstance(content, dict):
        images, annotations = content.get("images"), content.get("annotations")
        if _are_objects(annotations):
            return _coco(file, images if _are_objects(images) else None, annotations)
        if _are_objects(images):
            return _karpathy(file, images, chosen)
        if content and all(_is_caption(value) for value in content.values()):
            return ({"image": name, "caption": value} for name, value in content.items())
    raise UserError(f"{file} contains {_shown(content)}, but must contain {FORMS}")


def _coco(file: str, images: list[Row] | None, annotations: list[Row]) -> Iterator[Row]:
    """Return one row per image: its record, its file name as `image`, and all its captions as `caption`."""
    if not all("image_id" in row and _is_caption(row.get("caption")) for row in annotations):
        raise UserError(
            f"{file}: not every annotation has an image_id and a caption: use COCO's captions_*.json, which have them"
        )
    rows: dict[Any, Row] = {}
    for image in images or []:
        if "id" not in image or "file_name" not in image:
            raise UserError(f"{file}: an image has no id or no file_name: {_shown(image)}")
        rows[image["id"]] = {**image, "image": image["file_name"], "caption": []}
    for annotation in annotations:
        id, caption = annotation["image_id"], annotation["caption"]
        if images is None and id not in rows:
            rows[id] = {**annotation, "caption": []}
        if id not in rows:
            raise UserError(f"{file}: an annotation refers to image {id}, which is not among its images")
        rows[id]["caption"] += [caption] if isinstance(caption, str) else caption
    captioned = [row for row in rows.values() if row["caption"]]
    if len(captioned) < len(rows):
        rank_zero_info(
            f"{file}: left out {len(rows) - len(captioned)} of {len(rows)} images because they have no caption"
        )
    return iter(captioned)


def _karpathy(file: str, images: list[Row], chosen: bool) -> Iterator[Row]:
    """Return the images' records; if the file contains several splits, the user must select one."""
    splits = sorted({str(image["split"]) for image in images if "split" in image})
    if len(splits) > 1 and not chosen:
        raise UserError(f"{file} contains the splits {', '.join(splits)}: select one, as in {file}#split={splits[0]}")
    return iter(images)


def _are_objects(value: Any) -> TypeGuard[list[Row]]:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def _is_caption(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))


def _shown(value: Any) -> str:
    """Describe a value in a few words."""
    if isinstance(value, dict):
        names = ", ".join(printable(name, 40) for name in list(value)[:8])
        return f"an object with {len(value)} key(s): {names}{' ...' if len(value) > 8 else ''}"
    return f"a list of {len(value)}" if isinstance(value, list) else printable(json.dumps(value), 80)
