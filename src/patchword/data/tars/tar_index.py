"""Rows of tars with random access, using an index of the samples that is stored next to the tars."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from jaxtyping import Int64, UInt32
from lightning.pytorch.utilities import rank_zero_info

from patchword.data.skipping import BrokenSample
from patchword.data.tars.handles import Handles
from patchword.data.tars.headers import BLOCK
from patchword.data.tars.members import LARGEST, UNUSABLE, find_samples, key_of, no_member, read_samples
from patchword.errors import UserError
from patchword.files.atomic_write import atomic_write
from patchword.files.npz import read_npz

Stamp = tuple[int, int]  # size in bytes, and time of the last change in nanoseconds
Places = UInt32[np.ndarray, "N columns"]


class TarRows:
    """The samples of tars as rows with `__url__`, `__key__`, and the requested members as bytes.

    The index needs 20 bytes per sample with two members, in an array that processes can share. It is stored in a file
    next to the tars and reused for tars that have not changed. If a folder is not writable, its tars are indexed at
    every start.

    Args:
        paths: The tars, sorted.
        columns: The extensions of the requested members, as in `find_samples`.

    Attributes:
        starts: The number of samples in all tars before each tar; the last entry is N.

    Raises:
        UserError: If a tar is not complete or is compressed; see `find_samples`.
    """

    starts: Int64[np.ndarray, " starts"]

    def __init__(self, paths: list[Path], columns: list[str]) -> None:
        self.paths = paths
        self.column_names = columns
        folders = groupby(paths, lambda path: path.parent)
        places = [of_tar for folder, tars in folders for of_tar in _index(folder, [*tars], columns)]
        self.starts = np.cumsum([0, *map(len, places)])
        self._places = np.concatenate(places)
        self._handles = Handles()

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the samples in order, with all their members."""
        return read_samples([str(path) for path in self.paths])

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Read one sample.

        Raises:
            UserError: If the tar cannot be read or has changed; the message names it.
        """
        path = self.paths[int(np.searchsorted(self.starts, number, side="right")) - 1]
        first, *places = self._places[number].tolist()
        try:
            row: dict[str, Any] = {"__url__": str(path), "__key__": self._key(path, first)}
            for name, block, size in zip(self.column_names, places[::2], places[1::2], strict=True):
                row[name] = self._member(path, name, block, size)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror})") from error
        except tarfile.TarError as error:
            raise UserError(f"{path} has changed since it was indexed: start the run again") from error
        return row

    def _key(self, path: Path, first: int) -> str:
        """Return the key of the sample whose first header is in block `first`; a long name takes many blocks."""
        try:
            return key_of(self._handles.read(path, first * BLOCK, 4 * BLOCK))
        except tarfile.TarError:
            return key_of(self._handles.read(path, first * BLOCK, 4096 * BLOCK))

    def _member(self, path: Path, name: str, block: int, size: int) -> bytes | BrokenSample:
        if block == 0:
            unusable = f"it has more than one {name}, or one that is too large (a key ends at the first dot of a name)"
            return BrokenSample(unusable if size == UNUSABLE else no_member(name))
        content = self._handles.read(path, block * BLOCK, min(size, LARGEST))
        if len(content) < size:
            raise tarfile.ReadError("the tar is shorter than it was")
        return content


def _index(folder: Path, paths: list[Path], columns: list[str]) -> list[Places]:
    """Return the positions of the samples of each tar in one folder."""
    width = 1 + 2 * len(columns)
    kept = folder / f".patchword.{quote('+'.join(columns), safe='+')}.npz"
    known = _load(kept, width)
    stamps = {path.name: _stamp(path) for path in paths}
    missing = [path for path in paths if path.name not in known or known[path.name][0] != stamps[path.name]]
    if missing:
        rank_zero_info(f"indexing {len(missing)} tar(s) in {folder}")
        known |= {path.name: (stamps[path.name], find_samples(path, columns)) for path in missing}
        _save(kept, known)
    return [known[path.name][1] for path in paths]


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _load(kept: Path, width: int) -> dict[str, tuple[Stamp, Places]]:
    """Load the stored index; empty if it cannot be read or does not have the form that `_save` writes."""
    try:
        arrays = read_npz(kept, kept.stat().st_size)  # the file is not compressed
        names, stamps, counts, places = (arrays[name] for name in ("names", "stamps", "counts", "places"))
    except (OSError, ValueError, KeyError):
        return {}
    one, many = names.shape[:1], len(places) if places.ndim else -1
    fits = (
        (names.dtype.kind, names.ndim, stamps.dtype, stamps.shape) == ("U", 1, np.int64, (*one, 2))
        and (counts.dtype, counts.shape, places.dtype, places.shape) == (np.int64, one, np.uint32, (many, width))
        and (counts >= 0).all()
        and counts.sum() == many
    )
    if not fits:
        return {}
    of_tars = np.split(places, np.cumsum(counts)[:-1])
    return {
        name: ((size, time), of_tar)
        for name, (size, time), of_tar in zip(names.tolist(), stamps.tolist(), of_tars, strict=True)
        if _lie_within(of_tar, size)
    }


def _lie_within(places: Places, size: int) -> bool:
    """Whether all members are inside the tar."""
    wide = places.astype(np.int64)
    return bool((wide[:, :1] * BLOCK < size).all() and (wide[:, 1::2] * BLOCK + wide[:, 2::2] <= size).all())


def _save(kept: Path, known: dict[str, tuple[Stamp, Places]]) -> None:
    """Write the index atomically, so that other processes always read a complete file."""
    stamps, places = zip(*known.values(), strict=True)
    try:
        with atomic_write(kept, "wb") as file:
            np.savez(
                file,
                names=np.array([*known]),
                stamps=np.array(stamps, dtype=np.int64),
                counts=np.array([len(of_tar) for of_tar in places]),
                places=np.concatenate(places),
            )
    except OSError as error:
        rank_zero_info(
            f"the index cannot be written to {kept} ({error.strerror}), so every start will index the tars again"
        )
