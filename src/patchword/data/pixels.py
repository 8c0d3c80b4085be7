"""Read an image file and bring it to the size that the encoders take."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from patchword.errors import InputError


def read_image(file: Path | BytesIO) -> Image.Image:
    """The whole image upright and in RGB; what is transparent becomes white, 16-bit grey is scaled to 8 bits.

    Raises:
        InputError: If the file cannot be decoded; the message names it if it has a path.
    """
    name = f" {file}" if isinstance(file, Path) else ""
    try:
        with Image.open(file) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return rgb(image)
    except UnidentifiedImageError as error:
        raise InputError(f"the image{name} cannot be read (it is in no format that Pillow knows)") from error
    except Exception as error:  # of a broken file Pillow may make nearly any exception
        raise InputError(f"the image{name} cannot be read ({error})") from error


def rgb(image: Image.Image) -> Image.Image:
    """`image` in RGB; what is transparent becomes white, 16-bit grey is scaled to 8 bits."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


@dataclass(frozen=True)
class CentreCrop:
    """The largest square at the centre of an image, scaled to `size` pixels.

    Attributes:
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        size: Height and width of the result in pixels.
    """

    width: int
    height: int
    size: int

    def image(self, image: Image.Image) -> UInt8[Tensor, "3 size size"]:
        """The crop of `image`."""
        left, top, side = self._square()
        square = (left, top, left + side, top + side)
        scaled = image.resize((self.size, self.size), Image.Resampling.BICUBIC, box=square, reducing_gap=3.0)
        return torch.from_numpy(np.ascontiguousarray(np.asarray(scaled).transpose(2, 0, 1)))

    def box(self, box: tuple[float, float, float, float]) -> tuple[float, float, float, float] | None:
        """Where `box`, in pixels of the image, lies in the crop; None if it lies outside."""
        left, top, side = self._square()
        scale = self.size / side
        moved = [(x - offset) * scale for x, offset in zip(box, (left, top, left, top), strict=True)]
        x0, y0, x1, y1 = (min(max(x, 0.0), float(self.size)) for x in moved)
        return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None

    def mask(self, box: tuple[float, float, float, float]) -> Bool[Tensor, "size size"]:
        """All pixels that `box`, in pixels of the crop, touches."""
        mask = torch.zeros(self.size, self.size, dtype=torch.bool)
        mask[int(box[1]) : -int(-box[3] // 1), int(box[0]) : -int(-box[2] // 1)] = True
        return mask

    def _square(self) -> tuple[float, float, int]:
        side = min(self.width, self.height)
        return (self.width - side) / 2, (self.height - side) / 2, side
