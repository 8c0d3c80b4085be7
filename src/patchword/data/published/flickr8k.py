"""Flickr8k (Hodosh et al., JAIR 2013) as Flickr8k_Dataset.zip and Flickr8k_text.zip contain it.

If the folder also has `Sentences` and `Annotations` of Flickr30k Entities, captions and phrases come from there, since
phrases are positions in those captions, some of which differ in letters from `Flickr8k.token.txt`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from patchword.data.published import entities
from patchword.errors import UserError
from patchword.files.published import read_lines, require_file

IMAGES = "Flicker8k_Dataset"  # the archive spells it this way


def files(root: Path, split: str) -> list[Path]:
    """Return the list of the split (`train`, `dev`, `test`), the captions, and the annotations of its images.

    Raises:
        UserError: If a file is missing.
    """
    numbers = [_number(name) for name in _names(root, split)]
    return [_listed(root, split), _captions_file(root), *entities.files_of_all(root, numbers)]


def rows(root: Path, split: str) -> Iterator[dict[str, Any]]:
    """Yield one row per image of the split, in the order of its list.

    Raises:
        UserError: If a file is missing or not as published; the message names the file and the line.
    """
    path = _captions_file(root)
    captions = _captions(path)
    for name in _names(root, split):
        row = entities.captioned(root, _number(name), captions.get(name, []), path)
        yield {"file": name, "image": f"{IMAGES}/{name}"} | row


def _listed(root: Path, split: str) -> Path:
    return require_file(root, f"Flickr_8k.{split}Images.txt", "of Flickr8k_text.zip; the splits are train, dev, test")


def _captions_file(root: Path) -> Path:
    return require_file(root, "Flickr8k.token.txt", "captions, of Flickr8k_text.zip")


def _names(root: Path, split: str) -> list[str]:
    return [name for _, name in read_lines(_listed(root, split), comments=False)]


def _number(name: str) -> str:
    """Return the image's number in Flickr30k Entities: the part of its name before the underscore."""
    return name.partition("_")[0].removesuffix(".jpg")


def _captions(path: Path) -> dict[str, list[str]]:
    """Read the captions of all images from lines such as `1000268201_693b08cb0e.jpg#0<TAB>A child ...`."""
    found: dict[str, list[str]] = {}
    for number, line in read_lines(path, comments=False):
        place, tab, caption = line.partition("\t")
        name, hash_, _ = place.rpartition("#")
        if not (tab and hash_):
            raise UserError(f"{path}, line {number}: must be NAME#NUMBER, a tab, and a caption, not {line[:60]!r}")
        found.setdefault(name, []).append(caption.strip())
    return found
