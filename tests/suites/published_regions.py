"""Tiny data sets of images, in exactly the layouts in which the real ones are published."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

STEP = 20  # the colour of image or class i is (STEP i, STEP i, STEP i)
SIZE = (40, 30)


def grey(path: Path, number: int, size: tuple[int, int] = SIZE) -> Path:
    """An image of one grey, by which a model of tables knows it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (STEP * number,) * 3).save(path, quality=100, subsampling=0)
    return path


def class_folders(root: Path, images: dict[str, Sequence[int]]) -> Path:
    """ImageNet's `val` with a folder for each class: root/n01440764/ILSVRC2012_val_00000293.JPEG."""
    for folder, numbers in images.items():
        for number in numbers:
            grey(root / folder / f"ILSVRC2012_val_{number:08}.JPEG", number)
    return root
