"""Flickr30k (Young et al., TACL 2014): `flickr30k-images`, and captions in one of two published forms.

- Flickr30k Entities: the lists `train.txt`, `val.txt` and `test.txt`, and `Sentences` and `Annotations`.
- Karpathy's `dataset_flickr30k.json`, with other splits of the same names. Captions and phrases still come from
  `Sentences` and `Annotations` if these folders exist.

If there is a list of the split, it is used, and the log says so if there is also Karpathy's file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from patchword.data.published import entities, karpathy
from patchword.errors import UserError
from patchword.files.published import field, read_lines

IMAGES = "flickr30k-images"
KARPATHY = "dataset_flickr30k.json"


def files(root: Path, split: str) -> list[Path]:
    """Return the list of the split or Karpathy's file, and the annotations of the split's images.

    Raises:
        UserError: If there is neither a list of the split nor Karpathy's file.
    """
    path = _listed(root, split)
    if path.name != KARPATHY and (root / KARPATHY).is_file():
        rank_zero_info(f"the images of {split} are those of {path}, not those of {KARPATHY}")
    return [path, *entities.files_of_all(root, _images(root, split))]


def rows(root: Path, split: str) -> Iterator[dict[str, Any]]:
    """Yield one row per image of the split, in the order of its list.

    Raises:
        UserError: If a file is missing or not as published; the message names the file and the line.
    """
    path = _listed(root, split)
    for name, captions in _images(root, split).items():
        row = entities.captioned(root, name, captions, path)
        yield {"file": f"{name}.jpg", "image": f"{IMAGES}/{name}.jpg"} | row


def _listed(root: Path, split: str) -> Path:
    listed, captions = root / f"{split}.txt", root / KARPATHY
    if not listed.is_file() and not captions.is_file():
        raise UserError(
            f"there is neither {listed} (of Flickr30k Entities) nor {captions} (of Karpathy's caption_datasets.zip): "
            "set data.root to their folder"
        )
    return listed if listed.is_file() else captions


def _images(root: Path, split: str) -> dict[str, list[str]]:
    """Return the number of each image, with its captions in Karpathy's file if that is used."""
    path = _listed(root, split)
    if path.name != KARPATHY:
        return {name: [] for _, name in read_lines(path)}
    return {
        field(image, "filename", str, f"{path}, images[{position}]").removesuffix(".jpg"): captions
        for position, image, captions in karpathy.images(path, split)
    }
