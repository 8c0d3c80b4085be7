"""Read the images of a published data set as the model sees them, with checksums."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from patchword.data.pixels import Preprocessing, View, read_image
from patchword.errors import UserError


@dataclass(frozen=True)
class Framing:
    """How an image becomes the model's input.

    Attributes:
        preprocessing: How an image becomes a square.
        size: The height and width of the square in pixels.
    """

    preprocessing: Preprocessing
    size: int

    def view(self, image: Image.Image) -> View:
        """The part of `image` that the model sees."""
        return self.preprocessing.view(*image.size, self.size)

    def pixels(self, image: Image.Image) -> UInt8[Tensor, "_ size size"]:
        """The RGB pixels of `image` that the model sees, with a fourth channel if some are padding."""
        return self.view(image).image(image)


def load_image(path: Path, place: str, upright: bool = True) -> tuple[Image.Image, int]:
    """The image in RGB, and the CRC-32 of its file.

    Args:
        path: The file.
        place: Where the data set names the file, for messages.
        upright: Rotate the image according to its EXIF orientation. False if annotations refer to the stored pixels.

    Raises:
        UserError: If the file is missing or cannot be decoded; the message begins with `place`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{place}: there is no image {path} ({error.strerror})") from error
    try:
        return read_image(BytesIO(content), upright=upright), zlib.crc32(content)
    except UserError as error:
        raise UserError(f"{place}: {path}: {error}") from error


def checksum(*parts: int | str) -> int:
    """The CRC-32 of a sequence of numbers and texts."""
    return zlib.crc32("\0".join(map(str, parts)).encode())
