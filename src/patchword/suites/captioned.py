"""Suites of images with captions, which are read on access."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from patchword.suites.base import Suite, SuiteBatch
from patchword.suites.files import Framing, checksum
from patchword.suites.parquet import PictureCell
from patchword.suites.pictures import PictureFile


@dataclass(frozen=True)
class Captioned:
    """Images with their captions.

    Attributes:
        id: The position in the published file.
        pictures: One or two images.
        captions: The captions. If images are matched with captions, caption k belongs to image k, and further captions
            belong to no image.
        group: The group of a question, such as a category or a relation.
    """

    id: int
    pictures: tuple[PictureFile | PictureCell, ...]
    captions: tuple[str, ...]
    group: str = ""


class CaptionedSample(NamedTuple):
    """A record with the pixels [I, 3, H, W] of its images, and a checksum of its images and captions."""

    record: Captioned
    images: Tensor
    sum: int


@dataclass
class CaptionedBatch(SuiteBatch):
    """The M images and T captions of I records.

    Attributes:
        images: The raw pixels of the images.
        image_record: The record of each image.
        captions: The captions.
        caption_record: The record of each caption.
        groups: The group of each record.
    """

    images: UInt8[Tensor, "M 3 H W"]
    image_record: Int[Tensor, " M"]
    captions: list[str]
    caption_record: Int[Tensor, " T"]
    groups: list[str]


class CaptionedImages(Dataset[CaptionedSample]):
    """Reads the images of records on access."""

    def __init__(self, records: Sequence[Captioned], framing: Framing) -> None:
        self.records = records
        self.framing = framing

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> CaptionedSample:
        record = self.records[index]
        images, sums = zip(*(picture.read() for picture in record.pictures), strict=True)
        pixels = torch.stack([self.framing.pixels(image) for image in images])
        return CaptionedSample(record, pixels, checksum(record.id, *sums, *record.captions))


class CaptionedSuite(Suite):
    """A suite of images with captions; see `Suite` for the options."""

    @abstractmethod
    def records(self) -> list[Captioned]:
        """Return the images with their captions, in the order of the published file.

        Raises:
            UserError: If a file is missing or not as published.
        """

    def read(self, framing: Framing) -> Dataset[CaptionedSample]:
        """Read the captions; see `Suite.read`."""
        return CaptionedImages(self.records(), framing)

    def collate(self, samples: Sequence[CaptionedSample]) -> CaptionedBatch:
        """Combine records into one batch."""
        records = [sample.record for sample in samples]
        every = torch.arange(len(records))
        return CaptionedBatch(
            ids=torch.tensor([record.id for record in records]),
            sums=torch.tensor([sample.sum for sample in samples]),
            images=torch.cat([sample.images for sample in samples]),
            image_record=every.repeat_interleave(torch.tensor([len(record.pictures) for record in records])),
            captions=[caption for record in records for caption in record.captions],
            caption_record=every.repeat_interleave(torch.tensor([len(record.captions) for record in records])),
            groups=[record.group for record in records],
        )
