"""Find and read the samples of tars with images and captions (the layout of WebDataset and img2dataset)."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt32

from patchword.data.skipping import BrokenSample
from patchword.data.tars.headers import BLOCK, Header, members
from patchword.errors import UserError

IMAGES = ("jpg", "jpeg", "png", "webp")
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}
KEY = re.compile(r"((?:.*/)?(?!__)[^./]+)\.([^/]+)", re.DOTALL)
LARGEST = 2**28  # bytes; a larger member is not an image or a text
UNUSABLE = 1  # stored as the bytes, with block 0, if a sample has several members for a column or one that is too large


def find_samples(path: Path, columns: list[str]) -> UInt32[np.ndarray, "N columns"]:
    """Return the positions of the samples in a tar: the block of the first header, then block and bytes per column.

    The members KEY.EXTENSION form a sample, where KEY is a member's name up to the first dot after its folder. Columns
    are extensions, and `image` matches all of `IMAGES`. If a sample has no readable member for a column, its block is 0
    and its bytes are 0 (no member) or `UNUSABLE`. Samples are in the order of their first members. Only headers are
    read.

    Raises:
        UserError: If the file is not a complete uncompressed tar; the message names it.
    """
    samples: dict[str, list[int]] = {}
    for key, extension, member in _members(path):
        places = samples.setdefault(key, [member.offset // BLOCK] + [0] * (2 * len(columns)))
        for i, column in enumerate(columns):
            if extension == column or (column == "image" and extension in IMAGES):
                unusable = any(places[1 + 2 * i : 3 + 2 * i]) or member.size > LARGEST
                place = [0, UNUSABLE] if unusable else [member.offset_data // BLOCK, member.size]
                places[1 + 2 * i : 3 + 2 * i] = place
    return np.array([*samples.values()], dtype=np.uint32).reshape(-1, 1 + 2 * len(columns))


def no_member(name: str) -> str:
    """Return the reason why a sample without a member called `name` is broken."""
    return f"it has no {name} (a key ends at the first dot of a name)"


def key_of(header: bytes) -> str:
    """Return the key of the sample whose first member begins with `header`.

    Raises:
        tarfile.TarError: If `header` is not a complete header of a sample's member.
    """
    with tarfile.open(fileobj=BytesIO(header), mode="r:", tarinfo=Header) as tar:
        match = tar.firstmember and KEY.fullmatch(tar.firstmember.name)  # type: ignore[attr-defined]
    if not match:
        raise tarfile.ReadError("not a member of a sample")
    return str(match[1])


def read_samples(addresses: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the samples of local or remote tars in order, each with `__url__`, `__key__` and all its members.

    The members of a sample must be adjacent.

    Raises:
        UserError: If a file is not a complete tar; the message names it.
    """
    for address in addresses:
        for key, found in groupby(_contents(address), lambda content: content[0]):
            row: dict[str, Any] = {"__url__": address, "__key__": key}
            for _, extension, content in found:
                for column in (extension, *(["image"] if extension in IMAGES else [])):
                    row[column] = BrokenSample(f"it has more than one {column}") if column in row else content
            yield row


def _contents(address: str) -> Iterator[tuple[str, str, bytes | BrokenSample]]:
    """Yield key, extension and content of each member that belongs to a sample, in the order of the tar."""
    from datasets.utils.file_utils import xopen

    try:
        with (
            xopen(address, "rb", block_size=0) as stream,  # unbuffered, so no byte is requested twice
            tarfile.open(fileobj=stream, mode="r|*", tarinfo=Header) as tar,
        ):
            for member in members(tar):
                match = KEY.fullmatch(member.name)
                file = None if member.issym() or member.islnk() else tar.extractfile(member)
                content: bytes | BrokenSample = BrokenSample(f"it has a member of {member.size} bytes")
                if file and member.size > LARGEST:
                    while file.read(2**20):
                        pass
                elif file and match:
                    content = file.read()
                if match and member.isfile():
                    yield match[1], match[2].lower(), content
    except tarfile.TarError as error:
        raise UserError(f"{address} is not a complete tar ({error}): copy or pack it again") from error


def _members(path: Path) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Yield key, extension and header of each member that belongs to a sample."""
    with path.open("rb") as file:
        start = file.read(6)
        for magic, kind in COMPRESSED.items():
            if start.startswith(magic):
                raise UserError(
                    f"{path} is compressed ({kind}), so it does not allow random access to samples: decompress it "
                    "(compression hardly makes images smaller)"
                )
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:", tarinfo=Header) as tar:
                for member in members(tar):
                    if member.isfile() and (match := KEY.fullmatch(member.name)):
                        yield match[1], match[2].lower(), member
        except tarfile.TarError as error:
            raise UserError(f"{path} is not a complete tar ({error}): copy or pack it again") from error
