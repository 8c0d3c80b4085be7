"""Read an image file and bring it to the size that the encoders take."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate

from patchword.errors import InputError

Fit = Literal["crop", "stretch"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]

_BY_TORCH = ("bilinear", "bicubic")
_LARGE = 5  # from this reduction on, Pillow is faster: it averages whole blocks of pixels first


def read_image(file: Path | BytesIO, max_pixels: int | None = None, upright: bool = True) -> Image.Image:
    """The whole image in RGB; what is transparent becomes white, 16-bit grey is scaled to 8 bits.

    Args:
        file: A path, or the file's content.
        max_pixels: An image with more pixels is not decoded; nor is one with more than Pillow's
            `Image.MAX_IMAGE_PIXELS`, in whatever case.
        upright: Turn it as its EXIF orientation says; False leaves its pixels where they are stored.

    Raises:
        InputError: If the file cannot be decoded, or has too many pixels; the message names it if it has a path.
    """
    name = f" {file}" if isinstance(file, Path) else ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = Image.open(file)
        with opened as image:
            if max_pixels is not None and image.width * image.height > max_pixels:
                raise ValueError(f"it has {image.width} x {image.height} pixels, more than {max_pixels}")
            image.load()
            if upright:
                ImageOps.exif_transpose(image, in_place=True)
            return rgb(image)
    except UnidentifiedImageError as error:
        raise InputError(f"the image{name} cannot be read (it is in no format that Pillow knows)") from error
    except Exception as error:  # of a broken file Pillow may make nearly any exception
        raise InputError(f"the image{name} cannot be read ({error})") from error


def rgb(image: Image.Image) -> Image.Image:
    """`image` in RGB; what is transparent becomes white, 16-bit grey is scaled to 8 bits.

    Raises:
        InputError: If its values have no known range: real numbers, or integers of more than 16 bits.
    """
    if image.mode.startswith("I"):  # PNG and TIFF are read as I;16, PGM as I
        values = np.asarray(image)
        if values.min() < 0 or values.max() >= 1 << 16:
            raise InputError("its values are integers of more than 16 bits: save it with 8 or 16")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode == "F":
        raise InputError("its values are real numbers, of which none is known to be white: save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class View:
    """A rectangle of an image, scaled to a square of `size` pixels: what the model sees of it.

    Attributes:
        source: Left, top, right, bottom of the rectangle in pixels of the image.
        size: Height and width of the square in pixels.
        interpolation: How pixels are interpolated, always with antialiasing.
    """

    source: Box
    size: int
    interpolation: Interpolation = "bicubic"

    def image(self, image: Image.Image) -> UInt8[Tensor, "3 size size"]:
        """What `image`, in RGB, shows here.

        Rectangles of whole pixels are scaled by torch, which takes half of Pillow's time and rounds a few values in
        another way; much larger ones, and those between pixels, by Pillow.
        """
        left, top, right, bottom = self.source
        whole = all(edge.is_integer() for edge in self.source)
        if whole and self.interpolation in _BY_TORCH and min(right - left, bottom - top) < _LARGE * self.size:
            region = image.crop((int(left), int(top), int(right), int(bottom)))
            pixels = torch.frombuffer(bytearray(region.tobytes()), dtype=torch.uint8)
            planes = pixels.view(1, region.height, region.width, 3).permute(0, 3, 1, 2)
            size = (self.size, self.size)
            return interpolate(planes, size, mode=self.interpolation, antialias=True)[0].contiguous()
        method = Image.Resampling[self.interpolation.upper()]
        scaled = image.resize((self.size, self.size), method, box=self.source, reducing_gap=3.0)
        return torch.from_numpy(np.ascontiguousarray(np.asarray(scaled).transpose(2, 0, 1)))

    def box(self, box: Box) -> Box | None:
        """Where `box`, in pixels of the image, lies here; None if it lies outside."""
        left, top, right, bottom = self.source
        x, y = self.size / (right - left), self.size / (bottom - top)
        moved = ((box[0] - left) * x, (box[1] - top) * y, (box[2] - left) * x, (box[3] - top) * y)
        x0, y0, x1, y1 = (min(max(edge, 0.0), float(self.size)) for edge in moved)
        return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None

    def mask(self, box: Box) -> Bool[Tensor, "size size"]:
        """All pixels that `box`, in pixels of this view, touches."""
        mask = torch.zeros(self.size, self.size, dtype=torch.bool)
        mask[int(box[1]) : -int(-box[3] // 1), int(box[0]) : -int(-box[2] // 1)] = True
        return mask


@dataclass(frozen=True)
class Preprocessing:
    """How an image of any shape becomes a square: a backbone's own transform, but for its normalisation.

    Attributes:
        fit: `crop` takes the square at the centre, `stretch` the whole image, whatever its shape.
        fraction: Of a crop, its side as a share of the image's shorter side (timm's `crop_pct`).
        interpolation: How pixels are interpolated.
    """

    fit: Fit = "crop"
    fraction: float = 1.0
    interpolation: Interpolation = "bicubic"

    def fitted(self, fit: Literal["backbone", "crop", "stretch"]) -> Preprocessing:
        """This one for `backbone`, else one that fits all images so, whole and with this one's interpolation."""
        return self if fit == "backbone" else Preprocessing(fit, interpolation=self.interpolation)

    def view(self, width: int, height: int, size: int) -> View:
        """What a model that takes `size` pixels sees of an image of `width` x `height` pixels."""
        if self.fit == "stretch":
            return View((0.0, 0.0, float(width), float(height)), size, self.interpolation)
        side = min(width, height) * self.fraction
        left, top = (width - side) / 2, (height - side) / 2
        if self.fraction == 1:  # no half pixels
            left, top = left // 1, top // 1
        return View((left, top, left + side, top + side), size, self.interpolation)
