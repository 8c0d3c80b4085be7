"""List images without captions from a folder or a table, and read them in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from patchword.data.batch import Skipped
from patchword.data.pixels import Box, Preprocessing, is_image_name, read_image
from patchword.data.tables.sources import open_rows
from patchword.errors import UserError
from patchword.features import map_tensors


@runtime_checkable
class Pictures(Protocol):
    """A list of images."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Return the name of an image for tables, such as its relative path."""
        ...

    def open(self, index: int) -> Image.Image:
        """Read the whole image.

        Raises:
            UserError: If the image cannot be read.
        """
        ...


class Files:
    """The images of a folder and its subfolders, or one image file; their names are relative paths."""

    def __init__(self, path: Path) -> None:
        self.root = path if path.is_dir() else path.parent
        found = [path] if path.is_file() else path.rglob("*")
        self.paths = sorted(file for file in found if is_image_name(file) and file.is_file())
        if not self.paths:
            raise UserError(f"data.images: {path} contains no image file (jpg, png, webp ...)")

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """Return the path relative to the folder."""
        return self.paths[index].relative_to(self.root).as_posix()

    def open(self, index: int) -> Image.Image:
        """Read the whole image."""
        return read_image(self.paths[index])


class Table:
    """The images in a column of a parquet file; their names are row numbers."""

    def __init__(self, path: str, column: str) -> None:
        self.path, self.column = path, column
        self.rows: Any = open_rows("parquet", path, "data.images", None, False, None).rows
        names = self.rows.column_names
        if column not in names:
            raise UserError(f"data.images: {path} has no column {column!r} but {', '.join(names)}: set data.column")

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        """Return `row_` followed by the row number, which starts at 0."""
        return f"row_{index}"

    def open(self, index: int) -> Image.Image:
        """Read the whole image."""
        cell = self.rows[index][self.column]
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(content, bytes):
            raise UserError(f"{self.path}, row {index}: {self.column} contains no encoded image but {str(cell)[:40]!r}")
        return read_image(BytesIO(content))


@dataclass
class ZeroShotBatch:
    """A batch of I images without captions, and the images that could not be read.

    Attributes:
        ids: Positions of the images in the list.
        names: Names of the images.
        images: The pixels that the model gets; see `Batch`.
        sources: Left, top, right and bottom of the part of each image that the model gets, in pixels of the image.
        broken: Images that could not be read, with reasons.
    """

    ids: Int[Tensor, " I"]
    names: list[str]
    images: UInt8[Tensor, "I _ H W"]
    sources: Float[Tensor, "I 4"]
    broken: list[Skipped]

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: Any, **kwargs: Any) -> ZeroShotBatch:
        """Return the batch with its tensors on `device`."""
        return map_tensors(self, lambda x: x.to(device, **kwargs))

    def pin_memory(self) -> ZeroShotBatch:
        """Return the batch with its tensors in pinned memory. The DataLoader calls this method."""
        return map_tensors(self, lambda x: x.pin_memory())


_Seen = tuple[int, str, Box, UInt8[Tensor, "_ H W"]]  # position, name, source and pixels of an image


class SeenPictures(Dataset[Any]):
    """A dataset of the squares of `size` pixels that the model gets, or the reasons why images cannot be read."""

    def __init__(self, pictures: Pictures, preprocessing: Preprocessing, size: int) -> None:
        self.pictures, self.preprocessing, self.size = pictures, preprocessing, size

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> _Seen | Skipped:
        name = self.pictures.name(index)
        try:
            image = self.pictures.open(index)
        except UserError as error:
            return Skipped(name, str(error))
        view = self.preprocessing.view(*image.size, self.size)
        return index, name, view.source, view.image(image)

    def collate(self, found: Sequence[_Seen | Skipped]) -> ZeroShotBatch:
        """Build one batch, which may contain no image."""
        seen = [one for one in found if not isinstance(one, Skipped)]
        empty = torch.zeros(0, 3, self.size, self.size, dtype=torch.uint8)
        return ZeroShotBatch(
            ids=torch.tensor([index for index, *_ in seen], dtype=torch.long),
            names=[name for _, name, _, _ in seen],
            images=torch.stack([pixels for *_, pixels in seen]) if seen else empty,
            sources=torch.tensor([source for _, _, source, _ in seen], dtype=torch.float).view(-1, 4),
            broken=[one for one in found if isinstance(one, Skipped)],
        )


def list_pictures(path: Path, column: str) -> Pictures:
    """List the images of a folder, one image, or the images in a column of a parquet file.

    Raises:
        UserError: If there are no images.
    """
    return Table(str(path), column) if path.suffix == ".parquet" else Files(path)
