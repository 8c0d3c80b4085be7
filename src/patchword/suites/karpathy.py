"""COCO and Flickr30k as Karpathy & Fei-Fei (CVPR 2015, arXiv 1412.2306) split them, in their `dataset_*.json`."""

from __future__ import annotations

from pathlib import Path

from patchword.errors import InputError
from patchword.suites.files import field, named_inside, read_json, require_file
from patchword.suites.pictures import PictureFile
from patchword.suites.retrieval import Captioned


def karpathy(root: Path, name: str, folder: str | None, captions: int | None) -> list[Captioned]:
    """The images of the split `test` with their captions, in the order of the file.

    Args:
        root: The folder with the file and the images.
        name: The file, such as `dataset_coco.json`.
        folder: Where images lie; None where the file says it (`filepath`).
        captions: At most so many captions of each image, the first ones; None for all.

    Raises:
        InputError: If the file is missing or not as published, or `captions` is not a number from 1.
    """
    path = require_file(root, name, "of Karpathy's caption_datasets.zip")
    found = []
    for position, image in enumerate(field(read_json(path), "images", list, str(path))):
        place = f"{path}, images[{position}]"
        if field(image, "split", str, place) != "test":
            continue
        where = field(image, "filepath", str, place) if folder is None else folder
        file = named_inside(root, f"{where}/{field(image, 'filename', str, place)}", place)
        sentences = field(image, "sentences", list, place)
        texts = [field(sentence, "raw", str, f"{place}, sentences[{i}]") for i, sentence in enumerate(sentences)]
        found.append(Captioned(position, PictureFile(file, place), some(texts, captions, place)))
    if not found:
        raise InputError(f"{path}: no image has the split 'test': is it the published file?")
    return found


def some(captions: list[str], number: int | None, place: str) -> tuple[str, ...]:
    """The first `number` of an image's captions; None for all.

    Raises:
        InputError: If there is none, or `number` is not a number from 1.
    """
    if number is not None and number < 1:
        raise InputError(f"captions_per_image must be 1 or more (or null for all), not {number}")
    if not captions:
        raise InputError(f"{place} has no captions: is it the published file?")
    return tuple(captions[:number])
