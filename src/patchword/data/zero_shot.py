"""Every image of a folder or table with every text of a list: what a trained model says without further training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, UInt8
from lightning import LightningDataModule
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from patchword.data.batch import Skipped
from patchword.data.loader import evaluation_loader
from patchword.data.pixels import Preprocessing, View, read_image
from patchword.data.sources import open_rows
from patchword.encoders.base import Tokens
from patchword.errors import InputError
from patchword.features import Images, Texts, map_tensors
from patchword.spec import Specified

if TYPE_CHECKING:
    from patchword.module import AlignmentModule


@runtime_checkable
class Pictures(Protocol):
    """Images by their place in a list."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What the table calls an image; a relative path."""
        ...

    def open(self, index: int) -> Image.Image:
        """The whole image; raises InputError if it cannot be read."""
        ...


class Files:
    """The images of a folder and of the folders in it, or one image, by their relative paths."""

    def __init__(self, path: Path) -> None:
        self.root = path if path.is_dir() else path.parent
        known = {extension for extension, kind in Image.registered_extensions().items() if kind in Image.OPEN}
        found = [path] if path.is_file() else path.rglob("*")
        self.paths = sorted(file for file in found if file.suffix.lower() in known and file.is_file())
        if not self.paths:
            raise InputError(
                f"data.images: {path} holds no images that Pillow knows by their names (jpg, png, webp ...)"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The path below the folder."""
        return self.paths[index].relative_to(self.root).as_posix()

    def open(self, index: int) -> Image.Image:
        """The whole image."""
        return read_image(self.paths[index])


class Table:
    """The images in a column of a parquet file, by the number of their row."""

    def __init__(self, path: str, column: str) -> None:
        self.path, self.column = path, column
        self.rows: Any = open_rows("parquet", path, "data.images", None, False, None).rows
        if column not in self.rows.column_names:
            raise InputError(
                f"data.images: {path} has no column {column!r} but {', '.join(self.rows.column_names)}: set data.column"
            )

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        """`row_` and its number, from 0."""
        return f"row_{index}"

    def open(self, index: int) -> Image.Image:
        """The whole image."""
        cell = self.rows[index][self.column]
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(content, bytes):
            raise InputError(f"{self.path}, row {index}: {self.column} holds no encoded image but {str(cell)[:40]!r}")
        return read_image(BytesIO(content))


@dataclass
class ZeroShotBatch:
    """I images that could be read, and those that could not.

    Attributes:
        ids: Places of the images in the list.
        names: What the images are called.
        images: What the model sees of them.
        sources: For each image, left, top, right and bottom of what the model sees of it, in its own pixels.
        broken: The images that could not be read.
    """

    ids: Int[Tensor, " I"]
    names: list[str]
    images: UInt8[Tensor, "I 3 H W"]
    sources: Float[Tensor, "I 4"]
    broken: list[Skipped]

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: Any, **kwargs: Any) -> ZeroShotBatch:
        """The batch with its tensors on `device`."""
        return map_tensors(self, lambda x: x.to(device, **kwargs))

    def pin_memory(self) -> ZeroShotBatch:
        """The batch with its tensors in pinned memory; called by the DataLoader."""
        return map_tensors(self, lambda x: x.pin_memory())


@dataclass(frozen=True)
class _Seen:
    """One image as the model sees it."""

    index: int
    name: str
    view: View
    pixels: UInt8[Tensor, "3 H W"]


class SeenPictures(Dataset[Any]):
    """What a model sees of each picture, or why it cannot be read.

    Args:
        pictures: The images.
        preprocessing: How an image becomes a square.
        size: Height and width of the square in pixels.
    """

    def __init__(self, pictures: Pictures, preprocessing: Preprocessing, size: int) -> None:
        self.pictures, self.preprocessing, self.size = pictures, preprocessing, size

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> _Seen | Skipped:
        name = self.pictures.name(index)
        try:
            image = self.pictures.open(index)
        except InputError as error:
            return Skipped(name, str(error))
        view = self.preprocessing.view(*image.size, self.size)
        return _Seen(index, name, view, view.image(image))

    def collate(self, found: Sequence[_Seen | Skipped]) -> ZeroShotBatch:
        """One batch, which may hold no image."""
        seen = [one for one in found if isinstance(one, _Seen)]
        empty = torch.zeros(0, 3, self.size, self.size, dtype=torch.uint8)
        return ZeroShotBatch(
            ids=torch.tensor([one.index for one in seen], dtype=torch.long),
            names=[one.name for one in seen],
            images=torch.stack([one.pixels for one in seen]) if seen else empty,
            sources=torch.tensor([one.view.source for one in seen], dtype=torch.float).view(-1, 4),
            broken=[one for one in found if isinstance(one, Skipped)],
        )


@dataclass(frozen=True)
class ZeroShotScores:
    """What a model says of a batch.

    Attributes:
        scores: For each image and each text, the objective's score.
        images: The embedded images.
        texts: The embedded texts.
        tokens: Their tokens.
    """

    scores: Float[Tensor, "I T"]
    images: Images | None
    texts: Texts
    tokens: Tokens

    def maps(self, module: AlignmentModule, image: int) -> Float[Tensor, "T L P"]:
        """The objective's own maps of all texts over one image."""
        assert self.images is not None, "a batch without images has no maps"
        repeated = self.images[torch.full((len(self.texts),), image, device=self.scores.device)]
        return module.objective.align(repeated, self.texts)

    def words(self) -> Bool[Tensor, "T L"]:
        """The tokens whose mean map is a text's: its content words, or all that have maps if it has none."""
        content = self.tokens.select("content") & self.texts.mask
        return torch.where(content.any(-1, keepdim=True), content, self.texts.mask)


class ZeroShot(Specified, LightningDataModule):
    """For `patchword predict`: a score for each of your images with each of your texts.

    `predictions/images.csv` in the folder of the run has a row for each image and a column for each text. Images are
    read batch by batch; those that cannot be read are left out, and named in `predictions/broken.csv`.

    Args:
        images: A folder (with the folders in it), one image, or a parquet file with encoded images.
        texts: The texts, or a text file with one in each line.
        column: The column with the images of a parquet file.
        fit: How an image becomes a square: as the `backbone` was trained, the centre's `crop`, or all of it, to
            `stretch`.
        batch_size: Images per batch on each device.
        num_workers: Processes that read images; 0 reads them in the main process.

    Raises:
        InputError: If there are no images or no texts, or a text is empty or stands twice.
    """

    def __init__(
        self,
        images: str,
        texts: list[str] | str,
        column: str = "image",
        fit: Literal["backbone", "crop", "stretch"] = "backbone",
        batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.images = images
        self.texts = _texts(texts)
        self.column = column
        self.fit = fit
        self.batch_size = batch_size
        self.num_workers = num_workers
        self._pictures: Pictures | None = None
        self._embedded: tuple[Texts, Tokens] | None = None

    def setup(self, stage: str) -> None:
        """List the images.

        Raises:
            InputError: If the stage is not `predict`, or there are no images.
        """
        if stage != "predict":
            raise InputError(
                "ZeroShot has no captions to train on, or to measure with: run `patchword predict` with it"
            )
        path = Path(self.images).expanduser()
        if not path.exists():
            raise InputError(f"data.images: there is no folder or file {self.images}")
        self._pictures = Table(str(path), self.column) if path.suffix == ".parquet" else Files(path)
        self._embedded = None

    def predict_dataloader(self) -> dict[str, DataLoader[Any]]:
        """The images in their order, as `images`; on several devices Lightning shares them out.

        Raises:
            InputError: If there are fewer images than devices.
        """
        assert self._pictures is not None, "Lightning calls setup first"
        assert self.trainer is not None
        number, devices = len(self._pictures), self.trainer.world_size
        if number < devices:  # Lightning would fail on some, and the others would wait for them
            raise InputError(
                f"data.images: {self.images} holds {number} image(s) for {devices} devices: set trainer.devices to "
                f"{number} or less"
            )
        encoder: Any = self.trainer.lightning_module.encoder
        seen = SeenPictures(self._pictures, encoder.preprocessing.fitted(self.fit), encoder.image_size[0])
        return {"images": evaluation_loader(seen, self.batch_size, self.num_workers, seen.collate)}

    def predict(self, module: AlignmentModule, batch: ZeroShotBatch) -> ZeroShotScores:
        """The scores of a batch; texts are embedded once."""
        if self._embedded is None:
            self._embedded = module.encode_texts(self.texts)
        texts, tokens = self._embedded
        if not len(batch):
            return ZeroShotScores(torch.zeros(0, len(texts), device=module.device), None, texts, tokens)
        images = module.encode_images(batch.images)
        return ZeroShotScores(module.objective.score(images, texts), images, texts, tokens)

    def picture(self, index: int) -> Image.Image:
        """The whole image at a place of the list."""
        assert self._pictures is not None, "Lightning calls setup first"
        return self._pictures.open(index)


def _texts(given: list[str] | str) -> list[str]:
    """The texts, without those that are empty."""
    if isinstance(given, str):
        path = Path(given).expanduser()
        if not path.is_file():
            raise InputError(
                f"data.texts: there is no file {given}; texts of your own are a list: '[a dog, a red car]'"
            )
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except ValueError as error:
            raise InputError(f"data.texts: {given} is not UTF-8 text ({error})") from error
        given = [line for line in lines if line.strip()]
    texts = [text.strip() for text in given]
    if not texts or not all(texts):
        raise InputError("data.texts: there is no text, or an empty one")
    twice = next((text for number, text in enumerate(texts) if text in texts[:number]), None)
    if twice is not None:
        raise InputError(f"data.texts: {twice!r} stands twice: each text is a column of the table")
    return texts
