"""The splits of COCO and Flickr30k by Karpathy & Fei-Fei (CVPR 2015, arXiv 1412.2306), in their `dataset_*.json`."""

from __future__ import annotations

from pathlib import Path

from patchword.data.published.karpathy import images
from patchword.errors import UserError
from patchword.files.published import field, named_inside, require_file
from patchword.suites.captioned import Captioned
from patchword.suites.pictures import PictureFile


def karpathy(root: Path, name: str, folder: str | None, captions: int | None) -> list[Captioned]:
    """Return the images of the split `test` with their captions, in the order of the file.

    Args:
        root: The folder with the file and the images.
        name: The name of the file, such as `dataset_coco.json`.
        folder: The folder of the images; None if the file contains it (`filepath`).
        captions: Use the first captions of each image, up to this number; None for all captions.

    Raises:
        UserError: If the file is missing or not as published, or if `captions` is less than 1.
    """
    path = require_file(root, name, "of Karpathy's caption_datasets.zip")
    found = []
    for position, image, texts in images(path, "test"):
        place = f"{path}, images[{position}]"
        where = field(image, "filepath", str, place) if folder is None else folder
        file = named_inside(root, f"{where}/{field(image, 'filename', str, place)}", place)
        found.append(Captioned(position, (PictureFile(file, place),), some(texts, captions, place)))
    return found


def some(captions: list[str], number: int | None, place: str) -> tuple[str, ...]:
    """Return the first `number` of an image's captions; None for all captions.

    Raises:
        UserError: If the image has no captions, or if `number` is less than 1.
    """
    if number is not None and number < 1:
        raise UserError(f"captions_per_image must be 1 or more, or null for all captions, not {number}")
    if not captions:
        raise UserError(f"{place} has no captions: use the published file")
    return tuple(captions[:number])
