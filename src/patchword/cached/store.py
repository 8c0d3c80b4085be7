"""Store features on disk in files of 256 samples that are written atomically and mapped into memory."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from patchword.cached.batch import CachedSample
from patchword.cached.packed import Packed, pack
from patchword.errors import UserError
from patchword.files.atomic_write import atomic_write

SAMPLES = 256  # per file
KEY = "key.json"
CHECKSUM = "checksum"


@dataclass
class FeatureStore(Dataset[CachedSample]):
    """The features of N samples in a folder whose name is the hash of their key.

    Attributes:
        folder: The folder. It contains one file per `SAMPLES` samples, and `key.json`.
        samples: The number of samples N.
    """

    folder: Path
    samples: int
    _parts: dict[int, Packed] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int | tuple[int, int]) -> CachedSample:
        """Returns the sample at `index` or (index, epoch). Samples do not depend on the epoch."""
        return self.sample(index[0] if isinstance(index, tuple) else index)

    def sample(self, index: int, captions: Sequence[int] | None = None) -> CachedSample:
        """Returns the sample at `index` with those of its captions that have the indices `captions`; None for all.

        Only these captions and the features of the image are read from the disk.
        """
        return self._part(index // SAMPLES).sample(index % SAMPLES, captions)

    def index(self) -> tuple[list[int], list[int]]:
        """Returns the id and the number of captions of each sample."""
        parts = [self._part(part) for part in self.parts]
        ids = [id for part in parts for id in part.ids.tolist()]
        return ids, [number for part in parts for number in np.diff(part.starts).tolist()]

    def missing(self) -> list[int]:
        """The numbers of the files that do not exist yet."""
        return [part for part in self.parts if not self._path(part).is_file()]

    @property
    def parts(self) -> range:
        """The numbers of all files."""
        return range(-(-self.samples // SAMPLES))

    def members(self, part: int) -> range:
        """The indices of the samples of a file."""
        return range(part * SAMPLES, min((part + 1) * SAMPLES, self.samples))

    def write(self, part: int, samples: Sequence[CachedSample]) -> None:
        """Write a file of samples with its checksum. The write is atomic.

        Raises:
            UserError: If the file cannot be written.
        """
        from safetensors.torch import save

        tensors = pack(samples)
        try:
            with atomic_write(self._path(part), "wb") as file:
                file.write(save(tensors, {CHECKSUM: _checksum(tensors)}))
        except OSError as error:
            raise UserError(f"cannot write the features {self._path(part)}: {error.strerror}") from error

    def remove_broken(self, parts: Iterable[int]) -> list[Path]:
        """Remove the truncated and damaged files among `parts`, and return their paths.

        Each file is read completely.
        """
        broken = [self._path(part) for part in parts if self._path(part).is_file() and not self._is_whole(part)]
        for path in broken:
            path.unlink()
        return broken

    def describe(self, key: dict[str, str]) -> None:
        """Write `key.json`, which contains the key of the features."""
        with atomic_write(self.folder / KEY) as file:
            file.write(json.dumps(key, indent=2) + "\n")

    def _path(self, part: int) -> Path:
        return self.folder / f"{part:06d}.safetensors"

    def _is_whole(self, part: int) -> bool:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._path(part), "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 # no dictionary
                kept = (file.metadata() or {}).get(CHECKSUM)
        except (OSError, ValueError, SafetensorError):
            return False
        return kept == _checksum(tensors)

    def _part(self, number: int) -> Packed:
        from safetensors.torch import load_file

        if number not in self._parts:
            tensors = load_file(self._path(number))  # memory-mapped: data are read when they are used
            self._parts[number] = Packed(tensors)
        return self._parts[number]


def described(folder: Path) -> Iterable[dict[str, str]]:
    """The keys of all stores in `folder`, the newest first."""
    files = sorted(folder.glob(f"*/{KEY}"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in files:
        with suppress(OSError, ValueError, RecursionError):
            if isinstance(found := json.loads(file.read_text(encoding="utf-8")), dict):
                yield found


def _checksum(tensors: dict[str, Tensor]) -> str:
    """A checksum of the names, types, shapes and bytes of tensors."""
    value = 0
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().data, value)
    return f"{value:08x}"
