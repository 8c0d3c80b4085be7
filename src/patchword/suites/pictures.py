"""References to the image files of a published data set, which are read on access."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from patchword.errors import UserError
from patchword.suites.files import checksum, load_image


@dataclass(frozen=True)
class PictureFile:
    """An image file, or a region of an image file.

    Attributes:
        path: The file.
        place: Where the data set names the file, for messages.
        region: Left, top, right, bottom of the region in pixels; None for the complete image.
    """

    path: Path
    place: str
    region: tuple[int, int, int, int] | None = None

    def read(self) -> tuple[Image.Image, int]:
        """Return the image in RGB and a checksum of its source.

        A region refers to the stored pixels; its part outside the image is black.

        Raises:
            UserError: If the image is missing or cannot be decoded, or if the region is outside of it or too large.
        """
        image, crc = load_image(self.path, self.place, upright=self.region is None)
        if self.region is None:
            return image, crc
        left, top, right, bottom = self.region
        if left >= right or top >= bottom or left >= image.width or top >= image.height or right <= 0 or bottom <= 0:
            outside = f"the region {self.region} lies outside of {self.path}"
            raise UserError(f"{self.place}: {outside}: use the published files")
        try:
            return image.crop(self.region), checksum(crc, *self.region)
        except Image.DecompressionBombError as error:
            large = f"the region {self.region} is too large for an image"
            raise UserError(f"{self.place}: {large}: use the published files") from error
