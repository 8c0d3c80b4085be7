"""The captions and splits of COCO, Flickr30k and Flickr8k by Karpathy & Fei-Fei (CVPR 2015), in `dataset_*.json`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from patchword.errors import UserError
from patchword.files.published import field, read_json


def images(path: Path, split: str) -> Iterator[tuple[int, dict[str, Any], list[str]]]:
    """Yield the images of a split in the order of the file: position in the file, record, and captions.

    Raises:
        UserError: If the file is not as published, or has no image of this split.
    """
    found = False
    for position, image in enumerate(field(read_json(path), "images", list, str(path))):
        place = f"{path}, images[{position}]"
        if field(image, "split", str, place) != split:
            continue
        found = True
        sentences = field(image, "sentences", list, place)
        yield position, image, [field(one, "raw", str, f"{place}, sentences[{i}]") for i, one in enumerate(sentences)]
    if not found:
        raise UserError(f"{path}: no image has the split {split!r}: use the published file")
