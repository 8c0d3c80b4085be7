"""Random crops of training images, as in CLIP's training."""

from __future__ import annotations

import math
from random import Random

from patchword.data.pixels import Interpolation, View

SCALE = (0.9, 1.0)
RATIO = (3 / 4, 4 / 3)


def random_crop(width: int, height: int, size: int, interpolation: Interpolation, random: Random) -> View:
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
