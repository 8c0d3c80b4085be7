"""The part of an image that training sees: a crop at a random place, as CLIP is trained."""

from __future__ import annotations

import math
from random import Random

from patchword.data.pixels import Interpolation, View

SCALE = (0.9, 1.0)
RATIO = (3 / 4, 4 / 3)


def random_crop(width: int, height: int, size: int, interpolation: Interpolation, random: Random) -> View:
    """A random rectangle of an image, to be scaled to a square.

    CLIP (Radford et al., arXiv 2103.00020, section 2.4) takes "a random square crop from resized images" and no other
    augmentation. Its crop's size is not in the paper; here it is as open_clip trains CLIP: an area of 0.9 to 1 times
    the image's, a ratio of width to height from 3/4 to 4/3, log-uniform, as torchvision's RandomResizedCrop draws them.
    A rectangle that does not fit into the image is drawn again, ten times at most; then the largest one at the centre
    whose ratio is allowed is taken.

    Args:
        width: Of the image, in pixels.
        height: Of the image, in pixels.
        size: Height and width of the square in pixels.
        interpolation: How pixels are interpolated.
        random: The only source of random numbers.
    """
    for _ in range(10):
        area = width * height * random.uniform(*SCALE)
        ratio = math.exp(random.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = float(random.randint(0, width - w)), float(random.randint(0, height - h))
            return View((left, top, left + w, top + h), size, interpolation)
    w, h = min(width, round(height * RATIO[1]) or 1), min(height, round(width / RATIO[0]) or 1)
    left, top = (width - w) / 2, (height - h) / 2
    return View((left, top, left + w, top + h), size, interpolation)
