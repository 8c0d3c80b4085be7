"""Features on disk: files of some hundred samples each, written whole or not at all, and mapped into memory."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from patchword.cached.batch import CachedSample

SAMPLES = 256  # of a file
KEY = "key.json"

Part = dict[str, Tensor]


@dataclass
class FeatureStore(Dataset[CachedSample]):
    """The features of N samples, in a folder that is named by what they depend on.

    Attributes:
        folder: Holds a file for every `SAMPLES` samples, and `key.json`.
        samples: N.
    """

    folder: Path
    samples: int
    _parts: dict[int, Part] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int | tuple[int, int]) -> CachedSample:
        """The sample at `index`, or at (index, epoch): it is the same in every epoch."""
        number = index[0] if isinstance(index, tuple) else index
        return _sample(self._part(number // SAMPLES), number % SAMPLES)

    def missing(self) -> list[int]:
        """The numbers of the files that are not there yet."""
        return [part for part in range(-(-self.samples // SAMPLES)) if not self._path(part).is_file()]

    def members(self, part: int) -> range:
        """The samples of a file."""
        return range(part * SAMPLES, min((part + 1) * SAMPLES, self.samples))

    def write(self, part: int, samples: Sequence[CachedSample]) -> None:
        """Write the file of some samples; whoever looks meanwhile finds none, or a whole one."""
        from safetensors.torch import save_file

        aside = self._path(part).with_suffix(f".{uuid.uuid4().hex}")
        try:
            save_file(_joined(samples), aside)
            os.replace(aside, self._path(part))
        finally:
            with suppress(OSError):
                aside.unlink(missing_ok=True)

    def describe(self, key: dict[str, str]) -> None:
        """Write down what the features depend on."""
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = self.folder / f"{KEY}.{uuid.uuid4().hex}"
        aside.write_text(json.dumps(key, indent=2) + "\n", encoding="utf-8")
        os.replace(aside, self.folder / KEY)

    def _path(self, part: int) -> Path:
        return self.folder / f"{part:06d}.safetensors"

    def _part(self, number: int) -> Part:
        from safetensors.torch import load_file

        if number not in self._parts:
            self._parts[number] = load_file(self._path(number))  # mapped: only what is asked for is read
        return self._parts[number]


def described(folder: Path) -> Iterable[dict[str, str]]:
    """What the features of all stores in `folder` depend on, the newest first."""
    files = sorted(folder.glob(f"*/{KEY}"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in files:
        with suppress(OSError, ValueError):
            yield json.loads(file.read_text(encoding="utf-8"))


def _joined(samples: Sequence[CachedSample]) -> Part:
    """One tensor for everything of a kind, and where each sample's, or each caption's, begins."""
    captions = [caption.encode() for sample in samples for caption in sample.captions]
    words = [words for sample in samples for words in sample.words]
    spans = [spans for sample in samples for spans in sample.spans]
    part = {
        "ids": torch.tensor([sample.id for sample in samples]),
        "patches": torch.stack([sample.patches for sample in samples]),
        "captions": _starts(len(sample.captions) for sample in samples),
        "letters": torch.tensor(list(b"".join(captions)), dtype=torch.uint8),
        "letters_of": _starts(map(len, captions)),
        "words": torch.cat(words),
        "words_of": _starts(map(len, words)),
        "spans": torch.cat(spans),
        "spans_of": _starts(map(len, spans)),
    }
    class_tokens = [sample.class_token for sample in samples if sample.class_token is not None]
    return part | ({"class_tokens": torch.stack(class_tokens)} if class_tokens else {})


def _sample(part: Part, place: int) -> CachedSample:
    captions = range(*part["captions"][place : place + 2].tolist())

    def of(name: str, caption: int) -> Tensor:
        start, end = part[f"{name}_of"][caption : caption + 2].tolist()
        return part[name][start:end]

    return CachedSample(
        id=int(part["ids"][place]),
        patches=part["patches"][place],
        class_token=part["class_tokens"][place] if "class_tokens" in part else None,
        captions=[of("letters", caption).numpy().tobytes().decode() for caption in captions],
        words=[of("words", caption) for caption in captions],
        spans=[of("spans", caption) for caption in captions],
    )


def _starts(lengths: Iterable[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)
