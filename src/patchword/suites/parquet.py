"""Data sets in Parquet files in the layout of the Hugging Face hub: images are bytes in a column."""

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
from patchword.errors import UserError


@dataclass(frozen=True)
class Row:
    """A row of a Parquet file.

    Attributes:
        path: The file.
        row_group: The index of the row group.
        number: The index of the row in the row group.
        values: The values of the row, without images.
        place: The file and row, for messages.
    """

    path: Path
    row_group: int
    number: int
    values: dict[str, Any]
    place: str

    def picture(self, column: str) -> PictureCell:
        """Return the image in this column."""
        return PictureCell(self, column)


@dataclass(frozen=True)
class PictureCell:
    """The image in a cell of a Parquet file, whose column is a struct with `bytes`."""

    row: Row
    column: str

    def read(self) -> tuple[Image.Image, int]:
        """Return the image in RGB and a checksum of its source.

        The row groups that were read last are cached, so reading rows in order is fast.

        Raises:
            UserError: If the cell has no image, or if the image cannot be decoded.
        """
        cell = _column(self.row.path, self.row.row_group, self.column)[self.row.number].as_py()
        content = cell.get("bytes") if isinstance(cell, dict) else None
        if not isinstance(content, bytes):
            raise UserError(f"{self.row.place}: the column {self.column} has no image bytes: use the published file")
        try:
            return read_image(BytesIO(content)), zlib.crc32(content)
        except UserError as error:
            raise UserError(f"{self.row.place}, {self.column}: {error}") from error


def rows(root: Path, texts: tuple[str, ...], pictures: tuple[str, ...]) -> Iterator[Row]:
    """Yield all rows of all Parquet files in `root` and its subfolders, in the order of file names.

    Args:
        root: The folder of the files.
        texts: The names of the columns to read.
        pictures: The names of the image columns, which are read later.

    Raises:
        UserError: If there is no Parquet file, a file cannot be read, or a column is missing.
    """
    from pyarrow import ArrowException, parquet

    files = sorted(root.rglob("*.parquet"))
    if not files:
        raise UserError(f"there is no Parquet file in {root}: set data.root to the folder of the data set")
    for path in files:
        try:
            file = parquet.ParquetFile(path)
        except (ArrowException, OSError) as error:
            raise UserError(f"{path} is not a valid Parquet file ({error})") from error
        names = file.schema_arrow.names
        if missing := [name for name in (*texts, *pictures) if name not in names]:
            raise UserError(f"{path} has no column {missing[0]!r}, only {', '.join(names)}: use the published file")
        number = 0
        for group in range(file.num_row_groups):
            for row, values in enumerate(file.read_row_group(group, columns=list(texts)).to_pylist()):
                yield Row(path, group, row, values, f"{path}, row {number}")
                number += 1


@functools.lru_cache(maxsize=2)
def _column(path: Path, row_group: int, column: str) -> Any:
    from pyarrow import parquet

    return parquet.ParquetFile(path).read_row_group(row_group, columns=[column])[column]
