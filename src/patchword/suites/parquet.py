"""Data sets in Parquet files as the Hugging Face hub stores them: images are bytes in a column."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from patchword.data.pixels import read_image
from patchword.errors import InputError


@dataclass(frozen=True)
class PictureCell:
    """An image in a cell of a Parquet file.

    Attributes:
        path: The file.
        row_group: The row group.
        row: The row in it.
        column: The column, a struct with `bytes`.
        place: Where that is, for messages.
    """

    path: Path
    row_group: int
    row: int
    column: str
    place: str

    def read(self) -> tuple[Image.Image, int]:
        """See `Picture`. The row group that was read last is kept: neighbours cost nothing."""
        cell = _column(self.path, self.row_group, self.column)[self.row].as_py()
        content = cell.get("bytes") if isinstance(cell, dict) else None
        if not isinstance(content, bytes):
            raise InputError(f"{self.place}: {self.column} holds no bytes of an image")
        try:
            return read_image(BytesIO(content)), zlib.crc32(content)
        except InputError as error:
            raise InputError(f"{self.place}, {self.column}: {error}") from error


@dataclass(frozen=True)
class Row:
    """A row of a Parquet file.

    Attributes:
        path: The file.
        row_group: The row group.
        row: The row in it.
        values: Its values, but for images.
        place: Where it is, for messages.
    """

    path: Path
    row_group: int
    row: int
    values: dict[str, Any]
    place: str

    def picture(self, column: str) -> PictureCell:
        """The image in this column."""
        return PictureCell(self.path, self.row_group, self.row, column, self.place)


def rows(root: Path, texts: tuple[str, ...], pictures: tuple[str, ...]) -> Iterator[Row]:
    """All rows of all Parquet files in the folder `root` and its folders, in the order of their names.

    Args:
        root: The folder.
        texts: Columns to read.
        pictures: Columns of images, which are read later.

    Raises:
        InputError: If there is no such file, one cannot be read, or a column is missing.
    """
    from pyarrow import ArrowException, parquet

    files = sorted(root.rglob("*.parquet"))
    if not files:
        raise InputError(f"there is no Parquet file in {root}: give the folder of the data set as data.root")
    for path in files:
        try:
            file = parquet.ParquetFile(path)
        except (ArrowException, OSError) as error:
            raise InputError(f"{path} is no Parquet file ({error})") from error
        names = file.schema_arrow.names
        if missing := [name for name in (*texts, *pictures) if name not in names]:
            raise InputError(f"{path} has no column {missing[0]!r}, but {', '.join(names)}: is it the published file?")
        number = 0
        for group in range(file.num_row_groups):
            for row, values in enumerate(file.read_row_group(group, columns=list(texts)).to_pylist()):
                yield Row(path, group, row, values, f"{path}, row {number}")
                number += 1


@functools.lru_cache(maxsize=2)
def _column(path: Path, row_group: int, column: str) -> Any:
    from pyarrow import parquet

    return parquet.ParquetFile(path).read_row_group(row_group, columns=[column])[column]
