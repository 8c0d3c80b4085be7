"""Many samples packed into a few large tensors, from which single samples are read quickly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from patchword.cached.batch import CachedSample
from patchword.cached.further import PackedFurther, pack_further
from patchword.cached.rows import Rows, pack_rows, pack_texts, starts


def pack(samples: Sequence[CachedSample]) -> dict[str, Tensor]:
    """One concatenated tensor per kind of data, and the offset of each sample or caption in it."""
    tensors = {
        "ids": torch.tensor([sample.id for sample in samples]),
        "patches": torch.stack([sample.patches for sample in samples]),
        "captions": starts(len(sample.captions) for sample in samples),
        **pack_texts("letters", [caption for sample in samples for caption in sample.captions]),
        **pack_rows("words", [words for sample in samples for words in sample.words]),
        **pack_rows("spans", [spans for sample in samples for spans in sample.spans]),
    }
    class_tokens = [sample.class_token for sample in samples if sample.class_token is not None]
    masks = [sample.mask for sample in samples if sample.mask is not None]
    if masks:  # padding is not stored
        own = [sample.patches[mask] for sample, mask in zip(samples, masks, strict=True)]
        tensors |= {"masks": torch.stack(masks), **pack_rows("patches", own)}
    further = [one for sample in samples for one in sample.further]
    return (
        tensors
        | ({"class_tokens": torch.stack(class_tokens)} if class_tokens else {})
        | (pack_further(further) if further else {})
    )


class Packed:
    """Samples that `pack` has packed. Only the parts of a sample that are asked for are read from memory.

    Args:
        tensors: The tensors, which can be mapped into memory.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.ids = tensors["ids"].numpy()
        self.starts = tensors["captions"].numpy()
        self.class_tokens, self.masks = tensors.get("class_tokens"), tensors.get("masks")
        self.patches = tensors["patches"] if self.masks is None else Rows(tensors, "patches")
        self.letters, self.words, self.spans = (Rows(tensors, name) for name in ("letters", "words", "spans"))
        self.further = PackedFurther(tensors) if "boxes" in tensors else None

    def sample(self, place: int, chosen: Sequence[int] | None = None) -> CachedSample:
        """Returns the sample at `place` with its captions at the indices `chosen`; None for all captions."""
        first, end = self.starts[place : place + 2].tolist()
        captions = range(first, end) if chosen is None else [first + i for i in chosen]
        return CachedSample(
            id=int(self.ids[place]),
            patches=self._patches(place),
            class_token=None if self.class_tokens is None else self.class_tokens[place],
            mask=None if self.masks is None else self.masks[place],
            captions=[self.letters.text(caption) for caption in captions],
            words=[self.words[caption] for caption in captions],
            spans=[self.spans[caption] for caption in captions],
            further=[] if self.further is None else [self.further[caption] for caption in captions],
        )

    def _patches(self, place: int) -> Float[Tensor, "P C"]:
        if self.masks is None:
            return self.patches[place]
        mask, own = self.masks[place], self.patches[place]
        patches = own.new_zeros(len(mask), own.shape[1])
        patches[mask] = own
        return patches
