"""Read image files and scale them to the size that the encoders need."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate

from patchword.errors import UserError

ResizeMode = Literal["crop", "stretch", "native"]
ResizeOption = Literal["backbone", "crop", "stretch", "native"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]

# The image formats that are opened. Formats that Pillow passes to another program are excluded (EPS: Ghostscript). File
# names are not reliable: an EPS file can be named `.jpg`.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "DIB", "PPM", "JPEG2000", "ICO", "TGA", "PCX")

LARGEST = 4096  # height and width in pixels of the input of a model

_BY_TORCH = ("bilinear", "bicubic")
_LARGE = 5  # from this reduction factor on, Pillow is faster, because it first averages blocks of pixels


def require_image_size(size: int | None, smallest: int = 1) -> None:
    """Check the option `image_size`: a larger image would take the memory of the machine.

    Raises:
        UserError: If it is neither null nor a number from `smallest` to `LARGEST`.
    """
    if size is not None and not smallest <= size <= LARGEST:
        raise UserError(f"image_size must be from {smallest} to {LARGEST} pixels, not {size}")


def open_image(file: Path | BytesIO) -> Image.Image:
    """Open an image of one of `FORMATS` with `Image.open`, which decodes no pixels yet.

    Raises:
        UnidentifiedImageError: If the file has none of these formats.
    """
    Image.init()
    return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])  # not every Pillow has AVIF


def is_image_name(path: Path) -> bool:
    """Whether the file name has an extension of `FORMATS`; hidden files (macOS writes `._0.jpg`) do not count."""
    return Image.registered_extensions().get(path.suffix.lower()) in FORMATS and not path.name.startswith(".")


def read_image(file: Path | BytesIO, max_pixels: int | None = None, upright: bool = True) -> Image.Image:
    """Read all pixels of an image as RGB; see `decode`."""
    return decode(file, max_pixels, upright).image


def decode(
    file: Path | BytesIO,
    max_pixels: int | None = None,
    upright: bool = True,
    spare: Callable[[int, int], float] | None = None,
) -> Decoded:
    """Read an image as RGB; transparent pixels become white, and 16-bit gray is scaled to 8 bits.

    Args:
        file: A path or the content of the file.
        max_pixels: An image with more pixels is not decoded. An image with more than Pillow's `Image.MAX_IMAGE_PIXELS`
            is never decoded.
        upright: True rotates the image as its EXIF orientation says; False keeps the stored orientation.
        spare: Returns the factor by which an image of a width and height may be reduced. libjpeg decodes a JPEG at 1/2,
            1/4 or 1/8 of its size, which takes less time. Other formats are read completely. None reads all pixels.

    Raises:
        UserError: If the file cannot be decoded or has too many pixels; the message names the file if it has a path.
    """
    name = f" {file}" if isinstance(file, Path) else ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = open_image(file)
        with opened as image:
            if max_pixels is not None and image.width * image.height > max_pixels:
                raise ValueError(f"it has {image.width} x {image.height} pixels, more than {max_pixels}")
            size, reduction = image.size, 1
            if spare is not None:
                size = _size(image, upright)
                reduction = _reduce(image, spare(*size), upright and _orientation(image) != 1)
            image.load()
            if upright:
                ImageOps.exif_transpose(image, in_place=True)
            found = rgb(image)
            return Decoded(found, found.size if reduction == 1 else size, reduction)
    except UnidentifiedImageError as error:
        raise UserError(
            f"the image{name} cannot be read (it has none of the supported formats: {', '.join(FORMATS)})"
        ) from error
    except Exception as error:  # Pillow raises many kinds of exceptions for broken files
        raise UserError(f"the image{name} cannot be read ({error})") from error


def upright_size(file: Path | BytesIO) -> tuple[int, int]:
    """Return the width and height of an image, rotated as its EXIF orientation says, without decoding its pixels.

    Raises:
        UnidentifiedImageError: If the file has none of the `FORMATS`.
    """
    with open_image(file) as image:
        return _size(image, upright=True)


def _size(image: Image.Image, upright: bool) -> tuple[int, int]:
    return (image.height, image.width) if upright and _orientation(image) in (5, 6, 7, 8) else image.size


def _orientation(image: Image.Image) -> int:
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def _reduce(image: Image.Image, factor: float, turned: bool) -> int:
    """Make Pillow decode a JPEG at 1/2, 1/4 or 1/8 of its size, at least at 1/factor; return 2, 4, 8, or else 1.

    The last row and column of the result can cover fewer pixels than the others. An image that will be turned is
    reduced only if they do not, because they would become the first ones and move all others.
    """
    divided = math.gcd(8, *image.size) if turned else 8
    reduction = next(scale for scale in (8, 4, 2, 1) if scale <= min(max(factor, 1), divided))
    if reduction == 1:
        return 1
    drafted = image.draft(None, (image.width // reduction, image.height // reduction))
    return 1 if drafted is None else reduction


def rgb(image: Image.Image) -> Image.Image:
    """Convert `image` to RGB; transparent pixels become white, and 16-bit gray is scaled to 8 bits.

    Raises:
        UserError: If the pixel values have no known range (floating-point numbers or 32-bit integers).
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):  # these have 16 bits
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode.startswith("I"):
        raise UserError("its values are 32-bit integers, which have no known white: save it with 8 or 16 bits")
    if image.mode == "F":
        raise UserError("its values are floating-point numbers, which have no known white: save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class View:
    """A rectangle of an image, scaled to a square of `size` pixels or to a part of it, which the model sees.

    Attributes:
        source: Left, top, right, bottom of the rectangle in pixels of the image.
        size: Height and width of the square in pixels.
        interpolation: The interpolation method; antialiasing is always on.
        shape: Height and width of the scaled rectangle at the top left of the square, whose other pixels are padding.
            None if the rectangle fills the square.
    """

    source: Box
    size: int
    interpolation: Interpolation = "bicubic"
    shape: tuple[int, int] | None = None

    @property
    def scale(self) -> tuple[float, float]:
        """The factors by which the width and the height of the rectangle are scaled."""
        left, top, right, bottom = self.source
        height, width = self.shape or (self.size, self.size)
        return width / (right - left), height / (bottom - top)

    def image(self, image: Image.Image) -> UInt8[Tensor, "_ size size"]:
        """Crop and scale `image`, which must be RGB.

        If the square has padding, there is a fourth channel (alpha), 255 for the image and 0 for padding.

        torch scales rectangles with integer edges; it takes half of Pillow's time and rounds a few values differently.
        Pillow scales much larger rectangles and those with fractional edges.
        """
        if self.shape is None:
            return self._scaled(image, self.size, self.size)
        height, width = self.shape
        square = torch.zeros(4, self.size, self.size, dtype=torch.uint8)
        square[:3, :height, :width] = self._scaled(image, height, width)
        square[3, :height, :width] = 255
        return square

    def _scaled(self, image: Image.Image, height: int, width: int) -> UInt8[Tensor, "3 height width"]:
        left, top, right, bottom = self.source
        whole = all(edge.is_integer() for edge in self.source)
        if whole and self.interpolation in _BY_TORCH and min((right - left) / width, (bottom - top) / height) < _LARGE:
            region = image.crop((int(left), int(top), int(right), int(bottom)))
            pixels = torch.frombuffer(bytearray(region.tobytes()), dtype=torch.uint8)
            planes = pixels.view(1, region.height, region.width, 3).permute(0, 3, 1, 2)
            return interpolate(planes, (height, width), mode=self.interpolation, antialias=True)[0].contiguous()
        method = Image.Resampling[self.interpolation.upper()]
        scaled = image.resize((width, height), method, box=self.source, reducing_gap=3.0)
        return torch.from_numpy(np.ascontiguousarray(np.asarray(scaled).transpose(2, 0, 1)))

    def box(self, box: Box) -> Box | None:
        """Convert `box` from pixels of the image to pixels of the square; None if it is outside of the rectangle."""
        left, top, _, _ = self.source
        x, y = self.scale
        height, width = self.shape or (self.size, self.size)
        moved = ((box[0] - left) * x, (box[1] - top) * y, (box[2] - left) * x, (box[3] - top) * y)
        ends = (width, height, width, height)
        x0, y0, x1, y1 = (min(max(edge, 0.0), float(end)) for edge, end in zip(moved, ends, strict=True))
        return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


@dataclass(frozen=True)
class Decoded:
    """An image in RGB, of which a JPEG may be decoded at a fraction of its size.

    Attributes:
        image: The pixels.
        size: Width and height of the complete image, in which views and boxes are expressed.
        reduction: The number, 1, 2, 4 or 8, by which width and height are divided in `image`, rounded up.
    """

    image: Image.Image
    size: tuple[int, int]
    reduction: int = 1

    def seen(self, view: View) -> UInt8[Tensor, "_ size size"]:
        """What the model sees through `view`; see `View.image`."""
        left, top, right, bottom = (edge / self.reduction for edge in view.source)
        return replace(view, source=(left, top, right, bottom)).image(self.image)


@dataclass(frozen=True)
class Preprocessing:
    """How an image of any shape becomes a square: the backbone's own transform without its normalization.

    Attributes:
        resize_mode: `crop` keeps the central square, `stretch` keeps a rectangle with the image's aspect ratio;
            `native` is that of `NativePreprocessing`.
        fraction: The fraction of the image that is kept: of its shorter side (timm's `crop_pct`) for `crop`, of each
            side for `stretch`.
        interpolation: The interpolation method.
    """

    resize_mode: ResizeMode = "crop"
    fraction: float = 1.0
    interpolation: Interpolation = "bicubic"

    def with_resize_mode(self, resize_mode: ResizeOption) -> Preprocessing:
        """Return this preprocessing for `backbone` and for its own mode, else one with `resize_mode` and fraction 1.

        Raises:
            UserError: If `resize_mode` is `native`, and the backbone does not take images of any shape.
        """
        if resize_mode == "backbone" or resize_mode == self.resize_mode == "native":
            return self
        if resize_mode == "native":
            raise UserError(
                "resize_mode is native, but the image tower takes images of one shape: use a NaFlex model (SigLIP 2 "
                "NaFlex in HFImage or PretrainedPair, or max_num_patches of TimmImage), or set resize_mode to "
                "backbone, crop or stretch"
            )
        return Preprocessing(resize_mode, interpolation=self.interpolation)

    def view(self, width: int, height: int, size: int) -> View:
        """Return the view of an image of `width` x `height` pixels for a model with an input size of `size` pixels."""
        shorter = min(width, height)
        shape = (width, height) if self.resize_mode == "stretch" else (shorter, shorter)
        across, down = (side * self.fraction for side in shape)
        left, top = (width - across) / 2, (height - down) / 2
        if self.fraction == 1:  # avoid half pixels
            left, top = left // 1, top // 1
        return View((left, top, left + across, top + down), size, self.interpolation)


@dataclass(frozen=True)
class NativePreprocessing(Preprocessing):
    """NaFlex: an image keeps its aspect ratio and becomes as many complete patches as a sequence can hold.

    The square contains the scaled image at its top left. Its other pixels are padding.

    Attributes:
        patch_size: Height and width of a patch in pixels.
        max_num_patches: The largest number of patches of an image.
    """

    resize_mode: ResizeMode = "native"
    patch_size: int = 16
    max_num_patches: int = 256

    def __post_init__(self) -> None:
        if self.max_num_patches < 1:
            raise UserError(f"max_num_patches must be 1 or more, not {self.max_num_patches}")

    @property
    def square(self) -> int:
        """The default height and width of the square, 1.5 times the side of a square image.

        It holds images that are up to 2.25 times as wide as high, or as high as wide, at their full number of patches.
        """
        return max(int(1.5 * math.sqrt(self.max_num_patches)), 1) * self.patch_size

    def view(self, width: int, height: int, size: int) -> View:
        """Return the view of a complete image, scaled to `native_grid` patches in a square of `size` pixels."""
        longest = size // self.patch_size
        rows, columns = native_grid(width, height, self.patch_size, self.max_num_patches, longest)
        shape = (rows * self.patch_size, columns * self.patch_size)
        return View((0.0, 0.0, float(width), float(height)), size, self.interpolation, shape)


def native_grid(width: int, height: int, patch_size: int, most: int, longest: int) -> tuple[int, int]:
    """The rows and columns of patches of an image, as in the processor of SigLIP 2 (arXiv 2502.14786, NaFlex).

    Both sides are multiplied by one factor and rounded up to complete patches. The factor is the largest one with at
    most `most` patches, found by bisection up to 1e-5, as in transformers, because another precision would sometimes
    give another result. Here neither side can exceed `longest` patches, the side of the square.
    """
    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        factor = (low + high) / 2
        rows, columns = (max(math.ceil(side * factor / patch_size), 1) for side in (height, width))
        fits = rows * columns <= most and max(rows, columns) <= longest
        low, high = (factor, high) if fits else (low, factor)
    rows, columns = (max(math.ceil(side * low / patch_size), 1) for side in (height, width))
    return rows, columns
