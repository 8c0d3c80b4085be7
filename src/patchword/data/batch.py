"""The one contract between data and everything else: samples, and the batch they make.

Data knows nothing of tokenizers or backbones: images are uint8 pixels, captions are strings, phrases are
character spans with a mask. The encoders normalise pixels and tokenize.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.utils.data import default_collate

from patchword.errors import InputError
from patchword.features import map_tensors


@dataclass
class Phrase:
    """One noun phrase of a caption and, where the data says so, the object it names.

    Attributes:
        start: First character of the phrase in its caption.
        end: One past its last character.
        box: Left, top, right, bottom of the whole object in pixels, right and bottom exclusive; None if not known.
        mask: The object's visible pixels; None if not known.
    """

    start: int
    end: int
    box: tuple[float, float, float, float] | None = None
    mask: Bool[Tensor, "H W"] | None = None


@dataclass(frozen=True)
class Skipped:
    """A sample that could not be read, and in whose place there is another.

    Attributes:
        key: Which one it is in its data set: a path, a key, a row.
        reason: What is wrong with it.
    """

    key: str
    reason: str


@dataclass
class Sample:
    """One image with its captions.

    Attributes:
        id: Identifies the sample within its data set; metrics count each id once.
        image: RGB pixels.
        captions: One or more captions.
        phrases: For each caption, its phrases; may be empty lists.
        negatives: Captions that are wrong for this image in one detail (hard negatives of `captions[0]`).
        skipped: Broken samples in whose place this one was read.
    """

    id: int
    image: UInt8[Tensor, "3 H W"]
    captions: list[str]
    phrases: list[list[Phrase]]
    negatives: list[str]
    skipped: list[Skipped] = field(default_factory=list)


@dataclass
class Batch:
    """I images, their T captions and N phrases, flat, with an index from each part to its whole.

    In training T = I and captions[b] belongs to images[b], unless the data was asked for all captions of an image.

    Attributes:
        ids: Sample ids.
        images: RGB pixels.
        captions: All captions, image by image.
        caption_image: For each caption, its image in this batch.
        phrase_caption: For each phrase, its caption in this batch.
        phrase_span: For each phrase, first and one past the last character in its caption.
        phrase_box: For each phrase, left, top, right, bottom in pixels, right and bottom exclusive; zeros if not known.
        phrase_mask: For each phrase, the visible pixels of its object, none if not known; None if no phrase has a mask.
        negatives: All hard negatives, image by image; each is a wrong version of its image's first caption.
        negative_image: For each hard negative, its image in this batch.
        skipped: Broken samples in whose place others of this batch were read.
    """

    ids: Int[Tensor, " I"]
    images: UInt8[Tensor, "I 3 H W"]
    captions: list[str]
    caption_image: Int[Tensor, " T"]
    phrase_caption: Int[Tensor, " N"]
    phrase_span: Int[Tensor, "N 2"]
    phrase_box: Float[Tensor, "N 4"]
    phrase_mask: Bool[Tensor, "N H W"] | None
    negatives: list[str]
    negative_image: Int[Tensor, " M"]
    skipped: list[Skipped] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def first_caption(self) -> Int[Tensor, " I"]:
        """For each image, its first caption in this batch."""
        return torch.searchsorted(self.caption_image, torch.arange(len(self), device=self.caption_image.device))

    def to(self, device: Any, **kwargs: Any) -> Batch:
        """The batch with its tensors on `device`."""
        return self._map(lambda x: x.to(device, **kwargs))

    def pin_memory(self) -> Batch:
        """The batch with its tensors in pinned memory; called by the DataLoader."""
        return self._map(lambda x: x.pin_memory())

    def _map(self, function: Any) -> Batch:
        return map_tensors(self, function)


def collate(samples: Sequence[Sample]) -> Batch:
    """One batch of `samples`; the DataLoader's `collate_fn`.

    Raises:
        InputError: If the images differ in size; the message names the samples.
    """
    sizes = {sample.image.shape: sample.id for sample in samples}
    if len(sizes) > 1:
        shown = ", ".join(f"sample {i}: {s[2]} x {s[1]}" for s, i in sizes.items())
        raise InputError(f"the images of a batch must have one size, but (width x height) {shown}")
    height, width = samples[0].image.shape[1:]
    captions: list[str] = []
    negatives: list[str] = []
    phrases: list[Phrase] = []
    caption_image: list[int] = []
    negative_image: list[int] = []
    phrase_caption: list[int] = []
    for i, sample in enumerate(samples):
        for caption, its_phrases in zip(sample.captions, sample.phrases, strict=True):
            phrase_caption += [len(captions)] * len(its_phrases)
            phrases += its_phrases
            captions.append(caption)
            caption_image.append(i)
        negatives += sample.negatives
        negative_image += [i] * len(sample.negatives)
    return Batch(
        ids=torch.tensor([sample.id for sample in samples]),
        images=default_collate([sample.image for sample in samples]),  # in a worker, into shared memory
        captions=captions,
        caption_image=torch.tensor(caption_image),
        phrase_caption=torch.tensor(phrase_caption, dtype=torch.long),
        phrase_span=torch.tensor([(p.start, p.end) for p in phrases], dtype=torch.long).view(-1, 2),
        phrase_box=torch.tensor([p.box or (0, 0, 0, 0) for p in phrases], dtype=torch.float).view(-1, 4),
        phrase_mask=_masks(phrases, height, width),
        negatives=negatives,
        negative_image=torch.tensor(negative_image, dtype=torch.long),
        skipped=[skipped for sample in samples for skipped in sample.skipped],
    )


def _masks(phrases: list[Phrase], height: int, width: int) -> Bool[Tensor, "N H W"] | None:
    if phrases and all(phrase.mask is None for phrase in phrases):
        return None
    none = torch.zeros(height, width, dtype=torch.bool)
    masks = [none if phrase.mask is None else phrase.mask for phrase in phrases]
    return torch.stack(masks) if masks else none.expand(0, -1, -1)
