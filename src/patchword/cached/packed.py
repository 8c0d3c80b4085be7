"""Many samples packed into a few large tensors, from which single samples are read quickly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from patchword.cached.batch import CachedSample


def pack(samples: Sequence[CachedSample]) -> dict[str, Tensor]:
    """One concatenated tensor per kind of data, and the offset of each sample or caption in it."""
    captions = [caption.encode() for sample in samples for caption in sample.captions]
    words = [words for sample in samples for words in sample.words]
    spans = [spans for sample in samples for spans in sample.spans]
    tensors = {
        "ids": torch.tensor([sample.id for sample in samples]),
        "patches": torch.stack([sample.patches for sample in samples]),
        "captions": _starts(len(sample.captions) for sample in samples),
        "letters": torch.from_numpy(np.frombuffer(b"".join(captions), np.uint8).copy()),
        "letters_of": _starts(map(len, captions)),
        "words": torch.cat(words),
        "words_of": _starts(map(len, words)),
        "spans": torch.cat(spans),
        "spans_of": _starts(map(len, spans)),
    }
    class_tokens = [sample.class_token for sample in samples if sample.class_token is not None]
    masks = [sample.mask for sample in samples if sample.mask is not None]
    if masks:  # padding is not stored
        own = [sample.patches[mask] for sample, mask in zip(samples, masks, strict=True)]
        tensors |= {"masks": torch.stack(masks), "patches": torch.cat(own), "patches_of": _starts(map(len, own))}
    return tensors | ({"class_tokens": torch.stack(class_tokens)} if class_tokens else {})


class Packed:
    """Samples that `pack` has packed. Only the parts of a sample that are asked for are read from memory.

    Args:
        tensors: The tensors, which can be mapped into memory.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.ids = tensors["ids"].numpy()
        self.starts = tensors["captions"].numpy()
        self.letters = tensors["letters"].numpy()
        self.patches, self.words, self.spans = tensors["patches"], tensors["words"], tensors["spans"]
        self.class_tokens, self.masks = tensors.get("class_tokens"), tensors.get("masks")
        parts = ("letters", "words", "spans", *(() if self.masks is None else ("patches",)))
        self.offsets = {name: tensors[f"{name}_of"].numpy() for name in parts}

    def sample(self, place: int, chosen: Sequence[int] | None = None) -> CachedSample:
        """Returns the sample at `place` with its captions at the indices `chosen`; None for all captions."""
        first, end = self.starts[place : place + 2].tolist()
        captions = range(first, end) if chosen is None else [first + i for i in chosen]

        def of(name: str, values: Any) -> list[Any]:
            offsets = self.offsets[name]
            return [values[offsets[caption] : offsets[caption + 1]] for caption in captions]

        return CachedSample(
            id=int(self.ids[place]),
            patches=self._patches(place),
            class_token=None if self.class_tokens is None else self.class_tokens[place],
            mask=None if self.masks is None else self.masks[place],
            captions=[letters.tobytes().decode() for letters in of("letters", self.letters)],
            words=of("words", self.words),
            spans=of("spans", self.spans),
        )

    def _patches(self, place: int) -> Float[Tensor, "P C"]:
        if self.masks is None:
            return self.patches[place]
        mask, (start, end) = self.masks[place], self.offsets["patches"][place : place + 2].tolist()
        patches = self.patches.new_zeros(len(mask), self.patches.shape[1])
        patches[mask] = self.patches[start:end]
        return patches


def _starts(lengths: Iterable[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)
