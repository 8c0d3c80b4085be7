"""COCO (Lin et al., ECCV 2014, arXiv 1405.0312): the images, captions and instances of a split.

The splits are `train2017`, `val2017`, `train2014` and `val2014`, as annotations_trainval*.zip and the archives of the
images contain them. If there are instances, the names of their categories in the captions are phrases.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from patchword.data.published import instances
from patchword.errors import UserError
from patchword.files.published import field, read_json, require_file


def files(root: Path, split: str) -> list[Path]:
    """Return the file of captions and, if it exists, the file of instances.

    Raises:
        UserError: If there are no captions.
    """
    objects = root / f"annotations/instances_{split}.json"
    return [_captions_file(root, split), *([objects] if objects.is_file() else [])]


def rows(root: Path, split: str) -> Iterator[dict[str, Any]]:
    """Yield one row per image with captions, in the order of the file.

    Raises:
        UserError: If a file is missing or not as published; the message names the file and the record.
    """
    path, *annotated = files(root, split)
    objects = instances.read(annotated[0]) if annotated else None
    for place, image, captions in images(path):
        if not captions:
            raise UserError(f"{place} has no captions: use the published file")
        name = field(image, "file_name", str, place)
        row = {"file": name, "image": f"{split}/{name}", "caption": captions}
        if objects is not None:
            size = [field(image, side, int, place) for side in ("width", "height")]
            row |= {"phrases": objects.phrases(field(image, "id", int, place), captions), "size": size}
        yield row


def images(path: Path) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
    """Yield the images of `captions_*.json`: the place for messages, the record, and the captions.

    Raises:
        UserError: If the file is not as published.
    """
    content = read_json(path)
    captions: dict[int, list[str]] = {}
    for i, annotation in enumerate(field(content, "annotations", list, str(path))):
        place = f"{path}, annotations[{i}]"
        own = captions.setdefault(field(annotation, "image_id", int, place), [])
        own.append(field(annotation, "caption", str, place))
    for i, image in enumerate(field(content, "images", list, str(path))):
        place = f"{path}, images[{i}]"
        yield place, image, captions.get(field(image, "id", int, place), [])


def _captions_file(root: Path, split: str) -> Path:
    return require_file(root, f"annotations/captions_{split}.json", "of COCO's annotations_trainval2017.zip")
