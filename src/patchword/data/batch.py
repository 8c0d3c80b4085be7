"""The contract between data and all other code: samples and batches.

Data does not depend on tokenizers or backbones: images are uint8 pixels, captions are strings, and phrases are
character spans with a mask. The encoders normalize pixels and tokenize captions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.utils.data import default_collate

from patchword.data.pixels import Box
from patchword.errors import UserError
from patchword.features import map_tensors


@dataclass
class Phrase:
    """One noun phrase of a caption and, if known, the object that it names.

    Attributes:
        start: First character of the phrase in its caption.
        end: One past the last character of the phrase.
        box: Left, top, right, bottom of the complete object in pixels, right and bottom exclusive; None if unknown.
        mask: True for the object's visible pixels; None if unknown. Shape [H, W].
        boxes: One box per object if the phrase names several; `box` is then the smallest box around all of them.
        type: The category of the object; None if unknown.
    """

    start: int
    end: int
    box: Box | None = None
    mask: Bool[Tensor, "H W"] | None = None
    boxes: tuple[Box, ...] = ()
    type: str | None = None

    @classmethod
    def of_boxes(cls, start: int, end: int, boxes: Sequence[Box], size: int, type: str | None = None) -> Phrase:
        """Make a phrase from one or more boxes in a square image of `size` pixels.

        Its mask contains every pixel that a box touches.
        """
        mask = torch.zeros(size, size, dtype=torch.bool)
        for box in boxes:
            mask[int(box[1]) : -int(-box[3] // 1), int(box[0]) : -int(-box[2] // 1)] = True
        return cls(start, end, around(boxes), mask, tuple(boxes), type)


def around(boxes: Sequence[Box]) -> Box:
    """Return the smallest box around all `boxes`."""
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)


@dataclass(frozen=True)
class Skipped:
    """A sample that could not be read and was replaced by another one.

    Attributes:
        key: Identifies the sample within its data set: a path, a key or a row.
        reason: Why the sample could not be read.
    """

    key: str
    reason: str


@dataclass
class Sample:
    """One image with its captions.

    Attributes:
        id: Identifies the sample within its data set; metrics count each id once.
        image: RGB pixels; if some are padding, a fourth channel (alpha) is 0 for them and 255 for the others.
        captions: One or more captions.
        phrases: One list of phrases per caption; lists can be empty.
        negatives: Captions that are wrong for this image (hard negatives).
        skipped: Broken samples that this sample replaces.
        picture: A number that samples share if they show the same image file; None if unknown.
        negative_caption: The index of the caption that each hard negative belongs to; empty if all belong to
            `captions[0]`.
        global_views: Large crops of the image, see `patchword.data.augmentation.Views`; None without views.
        local_views: Small crops of the image; None without views.
    """

    id: int
    image: UInt8[Tensor, "_ H W"]
    captions: list[str]
    phrases: list[list[Phrase]]
    negatives: list[str]
    skipped: list[Skipped] = field(default_factory=list)
    picture: int | None = None
    negative_caption: list[int] = field(default_factory=list)
    global_views: UInt8[Tensor, "large 3 H W"] | None = None
    local_views: UInt8[Tensor, "small 3 H W"] | None = None


@dataclass
class Batch:
    """I images with their T captions and N phrases in flat lists, with indices from phrases to captions to images.

    In training T = I and captions[b] belongs to images[b], unless the data provides all captions of an image.

    Attributes:
        ids: Sample ids. Shape [I].
        images: RGB pixels, or with a fourth channel that is 0 for padding. Shape [I, C, H, W].
        captions: All captions, image by image.
        caption_image: The image index of each caption. Shape [T].
        phrase_caption: The caption index of each phrase. Shape [N].
        phrase_span: First and one past the last character of each phrase in its caption. Shape [N, 2].
        phrase_box: Left, top, right, bottom of each phrase's box in pixels, right and bottom exclusive; zeros if
            unknown. Shape [N, 4].
        phrase_mask: True for the visible pixels of each phrase's object, all False if unknown; None if no phrase has a
            mask. Shape [N, H, W].
        negatives: All hard negatives, image by image. In evaluation each is a wrong version of its image's first
            caption.
        negative_caption: The caption index of each hard negative. Shape [M].
        skipped: Broken samples that samples of this batch replace.
        boxes: All boxes of all phrases in pixels. Shape [K, 4].
        box_phrase: The phrase index of each box, in ascending order. Shape [K].
        phrase_type: The category of each phrase's object; None if unknown.
        repeated: Number of repeated images in this batch. The first occurrence of an image and replacements of broken
            samples do not count.
        global_views: Large crops of each image. Shape [I, large, 3, H, W]; None without views.
        local_views: Small crops of each image. Shape [I, small, 3, H, W]; None without views.
    """

    ids: Int[Tensor, " I"]
    images: UInt8[Tensor, "I _ H W"]
    captions: list[str]
    caption_image: Int[Tensor, " T"]
    phrase_caption: Int[Tensor, " N"]
    phrase_span: Int[Tensor, "N 2"]
    phrase_box: Float[Tensor, "N 4"]
    phrase_mask: Bool[Tensor, "N H W"] | None
    negatives: list[str]
    negative_caption: Int[Tensor, " M"]
    skipped: list[Skipped] = field(default_factory=list)
    boxes: Float[Tensor, "K 4"] = field(default_factory=lambda: torch.zeros(0, 4))
    box_phrase: Int[Tensor, " K"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    phrase_type: list[str | None] = field(default_factory=list)
    repeated: int = 0
    global_views: UInt8[Tensor, "I large 3 H W"] | None = None
    local_views: UInt8[Tensor, "I small 3 H W"] | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def first_caption(self) -> Int[Tensor, " I"]:
        """The index of each image's first caption in this batch."""
        return torch.searchsorted(self.caption_image, torch.arange(len(self), device=self.caption_image.device))

    @property
    def negative_image(self) -> Int[Tensor, " M"]:
        """The image index of each hard negative."""
        return self.caption_image[self.negative_caption]

    def regions(self) -> tuple[Int[Tensor, " R"], list[str]]:
        """The indices of the phrases whose box is known, and the texts of these phrases."""
        known = (self.phrase_box[:, 2:] > self.phrase_box[:, :2]).all(-1).nonzero()[:, 0]
        spans = zip(self.phrase_caption[known].tolist(), self.phrase_span[known].tolist(), strict=True)
        return known, [self.captions[caption][start:end] for caption, (start, end) in spans]

    def to(self, device: Any, **kwargs: Any) -> Batch:
        """Return the batch with its tensors on `device`."""
        return map_tensors(self, lambda x: x.to(device, **kwargs))

    def pin_memory(self) -> Batch:
        """Return the batch with its tensors in pinned memory; the DataLoader calls this."""
        return map_tensors(self, lambda x: x.pin_memory())


def collate(samples: Sequence[Sample]) -> Batch:
    """Combine `samples` into a batch; the DataLoader's `collate_fn`.

    Raises:
        UserError: If the images differ in size; the message names the samples.
    """
    sizes = {sample.image.shape: sample.id for sample in samples}
    if len(sizes) > 1:
        shown = ", ".join(f"sample {i}: {s[2]} x {s[1]}" for s, i in sizes.items())
        raise UserError(f"all images of a batch must have the same size, but the sizes (width x height) are {shown}")
    height, width = samples[0].image.shape[1:]
    captions: list[str] = []
    negatives: list[str] = []
    phrases: list[Phrase] = []
    caption_image: list[int] = []
    negative_caption: list[int] = []
    phrase_caption: list[int] = []
    for i, sample in enumerate(samples):
        of_negatives = sample.negative_caption or [0] * len(sample.negatives)
        negative_caption += [len(captions) + caption for caption in of_negatives]
        negatives += sample.negatives
        for caption, its_phrases in zip(sample.captions, sample.phrases, strict=True):
            phrase_caption += [len(captions)] * len(its_phrases)
            phrases += its_phrases
            captions.append(caption)
            caption_image.append(i)
    boxes = [phrase.boxes or ((phrase.box,) if phrase.box else ()) for phrase in phrases]
    pictures = [sample.picture for sample in samples if sample.picture is not None and not sample.skipped]
    return Batch(
        ids=torch.tensor([sample.id for sample in samples]),
        images=default_collate([sample.image for sample in samples]),  # in a worker this uses shared memory
        captions=captions,
        caption_image=torch.tensor(caption_image),
        phrase_caption=torch.tensor(phrase_caption, dtype=torch.long),
        phrase_span=torch.tensor([(p.start, p.end) for p in phrases], dtype=torch.long).view(-1, 2),
        phrase_box=torch.tensor([p.box or (0, 0, 0, 0) for p in phrases], dtype=torch.float).view(-1, 4),
        phrase_mask=_masks(phrases, height, width),
        negatives=negatives,
        negative_caption=torch.tensor(negative_caption, dtype=torch.long),
        skipped=[skipped for sample in samples for skipped in sample.skipped],
        boxes=torch.tensor([box for of_phrase in boxes for box in of_phrase], dtype=torch.float).view(-1, 4),
        box_phrase=torch.tensor([n for n, of_phrase in enumerate(boxes) for _ in of_phrase], dtype=torch.long),
        phrase_type=[phrase.type for phrase in phrases],
        repeated=len(pictures) - len({*pictures}),
        global_views=_stacked([sample.global_views for sample in samples]),
        local_views=_stacked([sample.local_views for sample in samples]),
    )


def _stacked(views: list[Tensor | None]) -> Tensor | None:
    """Stack the views of all samples; None if one of them has none."""
    found = [x for x in views if x is not None]
    return default_collate(found) if len(found) == len(views) else None


def _masks(phrases: list[Phrase], height: int, width: int) -> Bool[Tensor, "N H W"] | None:
    if phrases and all(phrase.mask is None for phrase in phrases):
        return None
    none = torch.zeros(height, width, dtype=torch.bool)
    masks = [none if phrase.mask is None else phrase.mask for phrase in phrases]
    return torch.stack(masks) if masks else none.expand(0, -1, -1)
