"""Images with boxes of objects and their classes, which suites of detection and of box classification share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from patchword.data.pixels import Box
from patchword.errors import UserError
from patchword.suites.base import Suite, SuiteBatch
from patchword.suites.files import Framing, checksum, load_image
from patchword.suites.prompts import read_templates

ROWS = 1_000_000  # more rows (objects, detections) than any image has
_ROUNDING = 1  # pixels by which a published box may exceed its image


@dataclass(frozen=True)
class Object:
    """An object of an image.

    Attributes:
        box: Left, top, right, bottom in pixels of the image, right and bottom exclusive.
        category: The position of its class among the classes.
        ignored: Whether it need not be found: a crowd (COCO), or a difficult object (VOC).
    """

    box: Box
    category: int
    ignored: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether the box has no area."""
        left, top, right, bottom = self.box
        return left >= right or top >= bottom


@dataclass(frozen=True)
class AnnotatedImage:
    """An image with its objects.

    Attributes:
        path: The image.
        place: Where the data set names the image, for messages.
        size: The width and height of the image, to which the boxes refer.
        objects: The objects.
    """

    path: Path
    place: str
    size: tuple[int, int]
    objects: tuple[Object, ...]


@dataclass(frozen=True)
class AnnotatedImages:
    """The images of a split.

    Attributes:
        names: The name of each class.
        images: The images.
    """

    names: list[str]
    images: list[AnnotatedImage]


def require_inside(box: Box, size: tuple[int, int], place: str) -> Box:
    """Return `box` after checking that it lies in an image of this width and height, except for rounding.

    Raises:
        UserError: If the box exceeds the image by more than a pixel; the message begins with `place`.
    """
    left, top, right, bottom = box
    if min(left, top) < -_ROUNDING or right > size[0] + _ROUNDING or bottom > size[1] + _ROUNDING:
        raise UserError(
            f"{place}: the box from ({left:g}, {top:g}) to ({right:g}, {bottom:g}) leaves its image of {size[0]} x "
            f"{size[1]} pixels: use the published file, or correct the box"
        )
    return box


@dataclass
class ObjectSample:
    """An image as the model sees it, with its objects in pixels of this view.

    Attributes:
        id: The position of the image in its split.
        image: The RGB pixels, with a fourth channel if some are padding.
        objects: The objects whose boxes have an area.
        empty: The number of objects whose boxes have no area; they are left out.
        total: A checksum of the image, its objects and the names of their classes.
    """

    id: int
    image: UInt8[Tensor, "_ H W"]
    objects: list[Object]
    empty: int
    total: int


@dataclass
class ObjectBatch(SuiteBatch):
    """A batch of images with N objects.

    Attributes:
        images: The pixels of the images; see `Batch`.
        boxes: Left, top, right and bottom of each object in pixels of the view.
        owner: The image of each object, as its position in the batch.
        category: The class of each object.
        ignored: True for objects that need not be found.
        empty: The number of objects of each image that are left out because their boxes have no area.
    """

    images: UInt8[Tensor, "I _ H W"]
    boxes: Float[Tensor, "N 4"]
    owner: Int[Tensor, " N"]
    category: Int[Tensor, " N"]
    ignored: Bool[Tensor, " N"]
    empty: Int[Tensor, " I"]


class ObjectSuite(Suite):
    """A suite on images with boxes of objects; each data set is a subclass.

    Args:
        root: The folder of the data set, in its published layout.
        prompts: `label` (the name only), `photo` ("a photo of a {}."), `clip` (CLIP's ensemble of 80), or a text file
            with one template per line. The name of a class replaces `{}` in the template.
        resize_mode: How an image becomes a square: `stretch` stretches the complete image; `native` keeps its shape and
            pads it (NaFlex models only). All objects are in view.
        batch_size: The number of images per batch on each device.
        options: Options of all suites; see `Suite`.

    Raises:
        UserError: If the templates cannot be read.
    """

    def __init__(
        self,
        root: str,
        prompts: str = "photo",
        resize_mode: Literal["stretch", "native"] = "stretch",
        batch_size: int = 16,
        **options: Any,
    ) -> None:
        super().__init__(root, resize_mode=resize_mode, batch_size=batch_size, **options)
        self.templates = read_templates(prompts)
        self.names: list[str] = []

    @abstractmethod
    def annotated(self) -> AnnotatedImages:
        """Read and check the annotations.

        Raises:
            UserError: If a file is missing or not as published. The message names the file, and the row.
        """

    def read(self, framing: Framing) -> Dataset[ObjectSample]:
        """Read the annotations; see `Suite.read`."""
        found = self.annotated()
        self.names = found.names
        return ObjectImages(found, framing)

    def collate(self, samples: Sequence[ObjectSample]) -> ObjectBatch:
        """Combine samples into one batch."""
        objects = [one for sample in samples for one in sample.objects]
        return ObjectBatch(
            ids=torch.tensor([sample.id for sample in samples]),
            sums=torch.tensor([sample.total for sample in samples]),
            images=torch.stack([sample.image for sample in samples]),
            boxes=torch.tensor([one.box for one in objects], dtype=torch.float).view(-1, 4),
            owner=torch.tensor([n for n, sample in enumerate(samples) for _ in sample.objects], dtype=torch.long),
            category=torch.tensor([one.category for one in objects], dtype=torch.long),
            ignored=torch.tensor([one.ignored for one in objects], dtype=torch.bool),
            empty=torch.tensor([sample.empty for sample in samples]),
        )


class ObjectImages(Dataset[ObjectSample]):
    """The images of a split with their objects, read on access."""

    def __init__(self, annotated: AnnotatedImages, framing: Framing) -> None:
        self.annotated, self.framing = annotated, framing

    def __len__(self) -> int:
        return len(self.annotated.images)

    def __getitem__(self, index: int) -> ObjectSample:
        """Return one image with its objects.

        Raises:
            UserError: If the image cannot be read, or if its size differs from that of its annotations.
        """
        one = self.annotated.images[index]
        image, content = load_image(one.path, one.place, upright=False)
        if image.size != one.size:
            raise UserError(
                f"{one.place}: {one.path} has {image.width} x {image.height} pixels, but its annotations are for "
                f"{one.size[0]} x {one.size[1]}: use the published images"
            )
        view = self.framing.view(image)
        seen = [(view.box(item.box), item) for item in one.objects if not item.is_empty]
        objects = [Object(box, item.category, item.ignored) for box, item in seen if box is not None]
        names = [self.annotated.names[item.category] for item in one.objects]
        total = checksum(content, *(f"{item.box} {item.ignored}" for item in one.objects), *names)
        return ObjectSample(index, view.image(image), objects, len(one.objects) - len(objects), total)
