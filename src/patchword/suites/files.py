"""Read the files of a published data set: checked, inside its folder, and never executed."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from patchword.data.pixels import Preprocessing, View, read_image
from patchword.errors import InputError


@dataclass(frozen=True)
class Framing:
    """What the model sees of an image.

    Attributes:
        preprocessing: How an image becomes a square.
        size: Height and width of the square in pixels.
    """

    preprocessing: Preprocessing
    size: int

    def view(self, image: Image.Image) -> View:
        """The view of `image`."""
        return self.preprocessing.view(*image.size, self.size)

    def pixels(self, image: Image.Image) -> UInt8[Tensor, "3 size size"]:
        """The pixels of `image`, in RGB, that the model sees."""
        return self.view(image).image(image)


def require_file(root: Path, name: str, what: str) -> Path:
    """`root / name`.

    Args:
        root: The folder of the data set.
        name: The path in it, as published.
        what: What the file is and where it comes from, for the message.

    Raises:
        InputError: If the folder or the file is missing.
    """
    if not root.is_dir():
        raise InputError(f"there is no folder {root}: give the folder of the data set as data.root")
    path = root / name
    if not path.is_file():
        raise InputError(f"there is no file {path} ({what})")
    return path


def named_inside(root: Path, name: str, place: str) -> Path:
    """The file `name` of the folder `root`, whose name leads down from there; it need not exist.

    Links are followed wherever they lead, for data sets are assembled of them; `data.safe_path` follows none out.

    Raises:
        InputError: If `name` is absolute or has `..`; the message begins with `place`.
    """
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts:
        raise InputError(f"{place}: {name!r} leads out of {root}: give a path inside it")
    return root / name


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        InputError: If it is not JSON in UTF-8.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not JSON ({error})") from error


def read_json_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a file with one JSON object a line, each with its line number from 1.

    Raises:
        InputError: If a line is not a JSON object; the message names it.
    """
    found = []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not UTF-8 text ({error})") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                record = json.loads(line)
            except ValueError as error:
                raise InputError(f"{path}, line {number}: not JSON ({error})") from error
            if not isinstance(record, dict):
                raise InputError(f"{path}, line {number}: not a JSON object")
            found.append((number, record))
    return found


def field(record: Any, name: str, kind: type, place: str) -> Any:
    """`record[name]`, which must be a `kind`.

    Raises:
        InputError: If `record` has no such field, or it is something else; the message begins with `place`.
    """
    if not isinstance(record, dict) or name not in record:
        known = ", ".join(list(record)[:12]) if isinstance(record, dict) else type(record).__name__
        raise InputError(f"{place} has no {name!r}, but {known}: is it the published file?")
    value = record[name]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InputError(f"{place}: {name} must be {kind.__name__}, not {str(value)[:60]!r}")
    return value


def load_image(path: Path, place: str, upright: bool = True) -> tuple[Image.Image, int]:
    """The image in RGB, and the CRC-32 of its file.

    Args:
        path: The file.
        place: Where the data set names it, for messages.
        upright: Turn it as its EXIF orientation says; not where annotations refer to the pixels as they are stored.

    Raises:
        InputError: If it is missing or cannot be decoded; the message begins with `place`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{place}: there is no image {path} ({error.strerror})") from error
    try:
        return read_image(BytesIO(content), upright=upright), zlib.crc32(content)
    except InputError as error:
        raise InputError(f"{place}: {path}: {error}") from error


def checksum(*parts: int | str) -> int:
    """The CRC-32 of numbers and texts in their order."""
    return zlib.crc32("\0".join(map(str, parts)).encode())
