"""Where in a tar of images and captions each sample lies (the layout of WebDataset and img2dataset)."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt32

from patchword.errors import InputError

BLOCK = 512  # everything in a tar begins at a multiple of this
IMAGES = ("jpg", "jpeg", "png", "webp")
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}
KEY = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")


def find_samples(path: Path, caption: str) -> UInt32[np.ndarray, "N 4"]:
    """First block and bytes of the image, first block and bytes of the caption, for each sample of a tar.

    The members KEY.jpg (or jpeg, png, webp) and KEY.`caption` make a sample; other members are passed over. KEY is a
    member's name up to the first dot behind its folder. The samples come in the order of their first members. Only
    headers are read.

    Args:
        path: An uncompressed tar.
        caption: What follows KEY and a dot in the name of the member with the caption.

    Raises:
        InputError: If the file is no whole uncompressed tar, or a sample has no, two or an empty image or caption;
            the message names tar and key.
    """
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    for key, extension, member in _members(path):
        part = "image" if extension in IMAGES else "caption" if extension == caption else None
        if part is None:
            continue
        sample = samples.setdefault(key, {})
        if part in sample:
            raise InputError(f"{path}: sample {key} has a second {part}, {member.name}: remove one of them")
        if member.size == 0:
            raise InputError(f"{path}: sample {key} has an empty {part}, {member.name}: fill it, or remove the sample")
        sample[part] = member.offset_data // BLOCK, member.size
    for key, sample in samples.items():
        if "image" not in sample:
            raise InputError(f"{path}: sample {key} has no image ({', '.join(IMAGES)}): add one, or remove the sample")
        if "caption" not in sample:
            raise InputError(
                f"{path}: sample {key} has no member {key}.{caption}: add it, remove the sample, or set "
                "data.caption to the member that holds the caption"
            )
    places = [(*sample["image"], *sample["caption"]) for sample in samples.values()]
    return np.array(places, dtype=np.uint32).reshape(-1, 4)


def key_at(path: Path, block: int) -> str:
    """The key of the sample to which the member at `block` belongs; for messages, since it reads all headers."""
    return next((key for key, _, member in _members(path) if member.offset_data // BLOCK == block), "?")


def _members(path: Path) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Key, extension and header of each member that belongs to a sample."""
    with path.open("rb") as file:
        start = file.read(6)
        for magic, kind in COMPRESSED.items():
            if start.startswith(magic):
                raise InputError(
                    f"{path} is compressed ({kind}), so that samples could not be read in any order: decompress it; "
                    "images hardly compress"
                )
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    if member.isfile() and (match := KEY.fullmatch(member.name)):
                        yield match[1], match[2].lower(), member
                end = tar.offset
        except tarfile.TarError as error:
            raise InputError(f"{path} is no whole tar ({error}): copy or pack it again") from error
        # tarfile takes a header that it cannot read for the end.
        file.seek(end)
        if file.read(BLOCK) != bytes(BLOCK):
            raise InputError(f"{path} is cut off or damaged behind byte {end}: copy or pack it again")
