"""Zero-shot scores: every image of a folder or table with every text of a list, without further training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from lightning import LightningDataModule
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from patchword.data.loader import evaluation_loader
from patchword.data.pixels import ResizeOption
from patchword.data.zero_shot_images import Pictures, SeenPictures, ZeroShotBatch, list_pictures
from patchword.data.zero_shot_texts import read_texts
from patchword.encoders.base import Tokens
from patchword.errors import UserError
from patchword.features import Images, Texts
from patchword.provenance.spec import Configurable

if TYPE_CHECKING:
    from patchword.module import AlignmentModule


@dataclass(frozen=True)
class ZeroShotScores:
    """The objective's scores of a batch, and the features that they were computed from.

    `images` is None if the batch has no images. `tokens` are the tokens of the texts.
    """

    scores: Float[Tensor, "I T"]
    images: Images | None
    texts: Texts
    tokens: Tokens

    def maps(self, module: AlignmentModule, image: int) -> Float[Tensor, "T L P"]:
        """Compute the objective's own maps of all texts over one image."""
        assert self.images is not None, "a batch without images has no maps"
        repeated = self.images[torch.full((len(self.texts),), image, device=self.scores.device)]
        return module.objective.align(repeated, self.texts)

    def words(self) -> Bool[Tensor, "T L"]:
        """True for tokens whose maps are averaged for a text: its content words, or all tokens if it has none."""
        content = self.tokens.select("content") & self.texts.mask
        return torch.where(content.any(-1, keepdim=True), content, self.texts.mask)


class ZeroShot(Configurable, LightningDataModule):
    """A data module for `patchword predict`, which scores each of your images with each of your texts.

    `predictions/images.csv` in the folder of the run has one row per image and one column per text. Images are read
    batch by batch. Images that cannot be read are skipped and listed in `predictions/broken.csv`.

    Args:
        images: A folder (including its subfolders), one image, or a parquet file with encoded images.
        texts: The texts, or a text file with one text per line.
        column: The column of the parquet file that contains the images.
        resize_mode: How an image becomes a square: `backbone`, as in the training of the image tower; `crop`, the
            square in the center; `stretch`, the complete image; `native`, the complete image in its own shape, with
            padding (NaFlex models only).
        batch_size: Images per batch on each device.
        num_workers: Processes that read images; 0 reads them in the main process.

    Raises:
        UserError: If there are no images or no texts, or if a text is empty or occurs twice.
    """

    def __init__(
        self,
        images: str,
        texts: list[str] | str,
        column: str = "image",
        resize_mode: ResizeOption = "backbone",
        batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.images = images
        self.texts = read_texts(texts)
        self.column = column
        self.resize_mode = resize_mode
        self.batch_size = batch_size
        self.num_workers = num_workers
        self._pictures: Pictures | None = None
        self._embedded: tuple[Texts, Tokens] | None = None

    def setup(self, stage: str) -> None:
        """List the images.

        Raises:
            UserError: If the stage is not `predict`, or there are no images.
        """
        if stage != "predict":
            raise UserError("ZeroShot has no captions for training or evaluation: use it with `patchword predict`")
        path = Path(self.images).expanduser()
        if not path.exists():
            raise UserError(f"data.images: there is no folder or file {self.images}")
        self._pictures = list_pictures(path, self.column)
        self._embedded = None

    def predict_dataloader(self) -> dict[str, DataLoader[Any]]:
        """Load the images in their order, as `images`. Lightning distributes them over several devices.

        Raises:
            UserError: If there are fewer images than devices.
        """
        assert self._pictures is not None, "Lightning calls setup first"
        assert self.trainer is not None
        number, devices = len(self._pictures), self.trainer.world_size
        if number < devices:  # Lightning would fail on some devices, and the others would wait for them
            raise UserError(
                f"data.images: {self.images} contains {number} image(s) for {devices} devices: set trainer.devices to "
                f"{number} or less"
            )
        encoder: Any = self.trainer.lightning_module.encoder
        seen = SeenPictures(
            self._pictures, encoder.preprocessing.with_resize_mode(self.resize_mode), encoder.image_size[0]
        )
        return {"images": evaluation_loader(seen, self.batch_size, self.num_workers, seen.collate)}

    def predict(self, module: AlignmentModule, batch: ZeroShotBatch) -> ZeroShotScores:
        """Compute the scores of a batch. The texts are embedded once."""
        if self._embedded is None:
            self._embedded = module.encode_texts(self.texts)
        texts, tokens = self._embedded
        if not len(batch):
            return ZeroShotScores(torch.zeros(0, len(texts), device=module.device), None, texts, tokens)
        images = module.encode_images(batch.images)
        return ZeroShotScores(module.objective.score(images, texts), images, texts, tokens)

    def picture(self, index: int) -> Image.Image:
        """Read the complete image at a position of the list."""
        assert self._pictures is not None, "Lightning calls setup first"
        return self._pictures.open(index)
