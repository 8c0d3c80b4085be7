"""Read the text files of a published data set. Contents are checked, stay inside the folder, and are never executed."""

from __future__ import annotations

import csv
import io
from pathlib import Path, PurePosixPath
from typing import Any

from patchword.errors import UserError
from patchword.files.json_text import parse_json


def require_file(root: Path, name: str, what: str) -> Path:
    """Return `root / name` after checking that the file exists.

    Args:
        root: The folder of the data set.
        name: The published path in the folder.
        what: A description and the source of the file, for the message.

    Raises:
        UserError: If the folder or the file is missing.
    """
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: set data.root to the folder of the data set")
    path = root / name
    if not path.is_file():
        raise UserError(f"there is no file {path} ({what})")
    return path


def named_inside(root: Path, name: str, place: str) -> Path:
    """Return `root / name` after checking that the name stays inside the folder `root`; the file need not exist.

    Symbolic links may lead out of the folder, because data sets are often assembled from links; `data.safe_path` does
    not allow this.

    Raises:
        UserError: If `name` is absolute or contains `..`; the message begins with `place`.
    """
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts:
        raise UserError(f"{place}: {name!r} leads out of {root}: use a path inside the folder")
    return root / name


def read_lines(path: Path, comments: bool = True) -> list[tuple[int, str]]:
    """The lines of a text file with their numbers from 1; empty lines are left out.

    Args:
        path: The file.
        comments: Also leave out lines that begin with `#`.

    Raises:
        UserError: If the file is not text in UTF-8, or if it has no lines.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not UTF-8 text ({error})") from error
    found = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    if comments:
        found = [(number, line) for number, line in found if not line.startswith("#")]
    if not found:
        raise UserError(f"{path} is empty")
    return found


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: If the file is not JSON in UTF-8, or has an object with a repeated key.
    """
    try:
        return parse_json(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not valid JSON ({error})") from error


def read_json_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The JSON objects of a file with one object per line, each with its line number from 1.

    Raises:
        UserError: If a line is not a JSON object; the message names the line.
    """
    found = []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not UTF-8 text ({error})") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                record = parse_json(line)
            except ValueError as error:
                raise UserError(f"{path}, line {number}: not valid JSON ({error})") from error
            if not isinstance(record, dict):
                raise UserError(f"{path}, line {number}: not a JSON object")
            found.append((number, record))
    return found


def read_table(path: Path, columns: tuple[str, ...]) -> list[tuple[str, dict[str, str]]]:
    """The rows of a CSV file with a line of names, each with its place for messages. Other columns are allowed.

    Raises:
        UserError: If the file is not CSV in UTF-8, has no row, lacks a column, or a row has too few or many values.
    """
    try:
        lines = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig")), strict=True)
        rows = list(lines)
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} is not a CSV file in UTF-8 ({error})") from error
    names = lines.fieldnames or []
    if missing := [name for name in columns if name not in names]:
        raise UserError(f"{path} has no column {missing[0]!r}, only {', '.join(names)}: use the published file")
    if not rows:
        raise UserError(f"{path} has no rows: use the published file")
    found = [(f"{path}, row {number}", row) for number, row in enumerate(rows, start=1)]
    for place, row in found:
        if None in row or None in row.values():
            raise UserError(f"{place} must have {len(names)} values: use the published file")
    return found


def field(record: Any, name: str, kind: type, place: str) -> Any:
    """Return `record[name]` after checking that it is a `kind`.

    Raises:
        UserError: If the field is missing or has a different type; the message begins with `place`.
    """
    if not isinstance(record, dict) or name not in record:
        known = ", ".join(list(record)[:12]) if isinstance(record, dict) else type(record).__name__
        raise UserError(f"{place} has no {name!r}, only {known}: use the published file")
    value = record[name]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(f"{place}: {name} must be {kind.__name__}, not {str(value)[:60]!r}")
    return value
