"""Random crops of training images: one crop, as in CLIP's training, or several views, as for self-distillation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

import torch
from jaxtyping import UInt8
from PIL import Image, ImageFilter
from torch import Tensor

from patchword.data.pixels import Interpolation, View
from patchword.errors import UserError

SCALE = (0.9, 1.0)
RATIO = (3 / 4, 4 / 3)
SMALLEST = 0.05  # the smallest area of a local crop, as a share of the image's


@dataclass
class Views:
    """Random crops of a training image, which are further views of it.

    The crops are drawn like those of COSMOS (arXiv 2412.01814), which follow DINO (arXiv 2104.14294, without a number
    of crops). COSMOS has two global crops. Here the complete image takes the place of the first one.

    Args:
        global_crops: Number of large crops. A teacher sees the image itself and these.
        local_crops: Number of small crops.
        scale: The smallest area of a large crop, and the largest area of a small one, as a share of the image's area.
        distort: Whether crops are also mirrored, recolored and blurred at random. Captions that name colors or sides
            are then often wrong.
    """

    global_crops: int = 1
    local_crops: int = 6
    scale: float = 0.4
    distort: bool = True

    def __post_init__(self) -> None:
        if min(self.global_crops, self.local_crops) < 0 or self.global_crops + self.local_crops == 0:
            raise UserError(
                "views.global_crops and views.local_crops must be 0 or more, and one of them 1 or more, not "
                f"{self.global_crops} and {self.local_crops}"
            )
        if not SMALLEST < self.scale <= 1:
            raise UserError(f"views.scale must be above {SMALLEST} and at most 1, not {self.scale}")

    def of(
        self, image: Image.Image, size: int, interpolation: Interpolation, random: Random
    ) -> tuple[UInt8[Tensor, "large 3 size size"], UInt8[Tensor, "small 3 size size"]]:
        """Draw the large and the small crops of `image`, which must be RGB, each scaled to a square.

        Args:
            image: The image.
            size: Height and width of the squares in pixels.
            interpolation: The interpolation method.
            random: The source of random numbers.
        """

        def crop(scale: tuple[float, float], blur: float, solarize: float) -> UInt8[Tensor, "3 size size"]:
            pixels = random_crop(*image.size, size, interpolation, random, scale).image(image)
            return _distorted(pixels, blur, solarize, random) if self.distort else pixels

        large = [crop((self.scale, 1.0), blur=0.1, solarize=0.2) for _ in range(self.global_crops)]
        small = [crop((SMALLEST, self.scale), blur=0.5, solarize=0.0) for _ in range(self.local_crops)]
        none = torch.zeros(0, 3, size, size, dtype=torch.uint8)
        return torch.stack(large) if large else none, torch.stack(small) if small else none


def _distorted(pixels: UInt8[Tensor, "3 H W"], blur: float, solarize: float, random: Random) -> UInt8[Tensor, "3 H W"]:
    """Mirror, recolor and blur an image with the probabilities of DINO. `blur` and `solarize` are probabilities."""
    from torchvision.transforms import v2

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random.getrandbits(63))
        recolor = v2.RandomApply([v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)], p=0.8)
        image = v2.Compose([v2.ToPILImage(), v2.RandomHorizontalFlip(), recolor, v2.RandomGrayscale(0.2)])(pixels)
        if random.random() < blur:
            image = image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))
        return v2.Compose([v2.RandomSolarize(128, solarize), v2.PILToTensor()])(image)


def random_crop(
    width: int,
    height: int,
    size: int,
    interpolation: Interpolation,
    random: Random,
    scale: tuple[float, float] = SCALE,
) -> View:
    """Draw a random rectangle of an image, which is then scaled to a square.

    CLIP (Radford et al., arXiv 2103.00020, section 2.4) uses "a random square crop from resized images" and no other
    augmentation. The paper does not state the size of the crop. Area and ratio follow open_clip: the area is 0.9 to 1
    times the image's area, and the ratio of width to height is log-uniform between 3/4 and 4/3, drawn as in
    torchvision's RandomResizedCrop. If a rectangle does not fit into the image, another one is drawn, at most ten
    times; after that, the result is the largest centered rectangle with an allowed ratio.

    Args:
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        size: Height and width of the square in pixels.
        interpolation: The interpolation method.
        random: The source of random numbers.
        scale: The smallest and the largest area, as shares of the image's.
    """
    for _ in range(10):
        area = width * height * random.uniform(*scale)
        ratio = math.exp(random.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = float(random.randint(0, width - w)), float(random.randint(0, height - h))
            return View((left, top, left + w, top + h), size, interpolation)
    w, h = min(width, round(height * RATIO[1]) or 1), min(height, round(width / RATIO[0]) or 1)
    left, top = (width - w) / 2, (height - h) / 2
    return View((left, top, left + w, top + h), size, interpolation)
