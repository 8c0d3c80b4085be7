"""Where an image of a published data set lies, and how it is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from PIL import Image

from patchword.errors import InputError
from patchword.suites.files import checksum, load_image


@runtime_checkable
class Picture(Protocol):
    """An image that is read when it is needed."""

    def read(self) -> tuple[Image.Image, int]:
        """The image in RGB, and a checksum of what it is made of.

        Raises:
            InputError: If it is missing or cannot be decoded.
        """
        ...


@dataclass(frozen=True)
class PictureFile:
    """An image in a file of its own, or a region of it.

    Attributes:
        path: The file.
        place: Where the data set names it, for messages.
        region: Left, top, right, bottom of the region in pixels; None for the whole image.
    """

    path: Path
    place: str
    region: tuple[int, int, int, int] | None = None

    def read(self) -> tuple[Image.Image, int]:
        """See `Picture`. What a region has outside the image is black; it refers to the pixels as they are stored."""
        image, crc = load_image(self.path, self.place, upright=self.region is None)
        if self.region is None:
            return image, crc
        left, top, right, bottom = self.region
        if left >= right or top >= bottom or left >= image.width or top >= image.height or right <= 0 or bottom <= 0:
            raise InputError(f"{self.place}: the region {self.region} lies outside of {self.path}")
        try:
            return image.crop(self.region), checksum(crc, *self.region)
        except Image.DecompressionBombError as error:
            raise InputError(f"{self.place}: the region {self.region} is too large for an image") from error
