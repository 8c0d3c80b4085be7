"""An index of the samples of many tars, kept in a file beside them."""

from __future__ import annotations

import os
import uuid
import zipfile
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt32
from lightning.pytorch.utilities import rank_zero_info

from patchword.data.tars import find_samples

Stamp = tuple[int, int]  # bytes, and time of the last change in nanoseconds
Places = UInt32[np.ndarray, "N 4"]


@dataclass(frozen=True, eq=False)
class TarIndex:
    """Where the samples of tars lie: 16 bytes for each of the N samples, in arrays that processes can share.

    Attributes:
        paths: The tars.
        starts: For each tar, how many samples the tars before it hold; at the end, N.
        places: For each sample, what `find_samples` says.
    """

    paths: list[Path]
    starts: Int64[np.ndarray, " starts"]
    places: UInt32[np.ndarray, "N 4"]

    def __len__(self) -> int:
        return len(self.places)

    def path(self, sample: int) -> Path:
        """The tar that holds a sample."""
        return self.paths[int(np.searchsorted(self.starts, sample, side="right")) - 1]


def index_tars(paths: list[Path], caption: str) -> TarIndex:
    """The index of tars, read from the files that earlier calls left beside them where the tars have not changed.

    Where a folder cannot be written, its tars are indexed anew at every call.

    Args:
        paths: The tars, sorted.
        caption: As for `find_samples`.

    Raises:
        InputError: As `find_samples` does.
    """
    folders = groupby(paths, lambda path: path.parent)
    places = [of_tar for folder, tars in folders for of_tar in _index(folder, [*tars], caption)]
    starts = np.cumsum([0, *map(len, places)])
    return TarIndex(paths, starts, np.concatenate(places))


def _index(folder: Path, paths: list[Path], caption: str) -> list[Places]:
    """The samples of each tar of one folder."""
    kept = folder / f".patchword.{caption}.npz"
    known = _load(kept)
    stamps = {path.name: _stamp(path) for path in paths}
    missing = [path for path in paths if path.name not in known or known[path.name][0] != stamps[path.name]]
    if missing:
        rank_zero_info(f"indexing {len(missing)} tar(s) of {folder}")
        known |= {path.name: (stamps[path.name], find_samples(path, caption)) for path in missing}
        _save(kept, known)
    return [known[path.name][1] for path in paths]


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _load(kept: Path) -> dict[str, tuple[Stamp, Places]]:
    """What an earlier call has left; nothing if that cannot be read."""
    try:
        with np.load(kept) as arrays:
            names, stamps, counts = arrays["names"].tolist(), arrays["stamps"].tolist(), arrays["counts"]
            places = np.split(arrays["places"], np.cumsum(counts)[:-1])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}
    return {name: ((size, time), of_tar) for name, (size, time), of_tar in zip(names, stamps, places, strict=True)}


def _save(kept: Path, known: dict[str, tuple[Stamp, Places]]) -> None:
    """Write aside and rename: whoever reads meanwhile finds a whole file."""
    aside = kept.with_suffix(f".{uuid.uuid4().hex}")
    stamps, places = zip(*known.values(), strict=True)
    try:
        with aside.open("wb") as file:
            np.savez(
                file,
                names=np.array([*known]),
                stamps=np.array(stamps, dtype=np.int64),
                counts=np.array([len(of_tar) for of_tar in places]),
                places=np.concatenate(places),
            )
        os.replace(aside, kept)
    except OSError as error:
        aside.unlink(missing_ok=True)
        rank_zero_info(f"the index cannot be kept as {kept} ({error.strerror}): every start indexes again")
