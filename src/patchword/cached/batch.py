"""Batches that contain the features of the towers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from patchword.cached.further import Further
from patchword.data.batch import Batch, Sample
from patchword.data.batch import collate as collate_samples
from patchword.encoders.base import Selection, Tokens
from patchword.errors import UserError
from patchword.features import Images, Texts
from patchword.objective import Need


@dataclass
class CachedSample:
    """The features of one image and its captions.

    Attributes:
        id: Identifies the sample within its data set.
        patches: The image tower's patch features.
        class_token: The class token of the image tower; None if it has no class token.
        captions: One or more captions.
        words: The token features of each caption, without padding.
        spans: The character spans [start, end) of the phrases of each caption.
        further: The hard negatives and the regions of each caption; empty if the objective needs none.
        mask: True for patches, False for padding; None if all are patches.
    """

    id: int
    patches: Float[Tensor, "P C"]
    class_token: Float[Tensor, " C"] | None
    captions: list[str]
    words: list[Float[Tensor, "_ E"]]
    spans: list[Int[Tensor, "_ 2"]]
    further: list[Further] = field(default_factory=list)
    mask: Bool[Tensor, " P"] | None = None


@dataclass
class CachedBatch(Batch):
    """A batch with the features of the towers. In training it has no pixels: its `images` have height 0 and width 0.

    Attributes:
        patches: The image tower's patch features.
        class_tokens: The class tokens of the image tower; None if it has no class token.
        patch_mask: True for patches, False for padding; None if all are patches.
        words: The text tower's token features of the captions; zeros for padding.
        negative_words: The text tower's token features of the hard negatives; None if they are not stored.
        region_words: The text tower's token features of the phrases with boxes, each encoded alone; None if they are
            not stored.
    """

    patches: Float[Tensor, "I P C"] = field(kw_only=True)
    class_tokens: Float[Tensor, "I C"] | None = field(kw_only=True)
    patch_mask: Bool[Tensor, "I P"] | None = field(default=None, kw_only=True)
    words: Float[Tensor, "T L E"] = field(kw_only=True)
    negative_words: Float[Tensor, "M J E"] | None = field(kw_only=True)
    region_words: Float[Tensor, "R Q E"] | None = field(kw_only=True)

    @property
    def needed_words(self) -> dict[Need, Float[Tensor, "N L E"] | None]:
        """The token features of the texts that some objectives need."""
        return {"negatives": self.negative_words, "regions": self.region_words}


def collate(samples: Sequence[CachedSample]) -> CachedBatch:
    """The `collate_fn` of the training DataLoader.

    The batch has no pixels and no masks. It has boxes and hard negatives only if the objective needs them.
    """
    captions = [caption for sample in samples for caption in sample.captions]
    spans = [spans for sample in samples for spans in sample.spans]
    owners = [i for i, sample in enumerate(samples) for _ in sample.captions]
    further = [one for sample in samples for one in sample.further]
    negatives = [text for one in further for text in one.negatives]
    return CachedBatch(
        ids=torch.tensor([sample.id for sample in samples]),
        images=torch.zeros(len(samples), 3, 0, 0, dtype=torch.uint8),
        captions=captions,
        caption_image=torch.tensor(owners),
        phrase_caption=torch.arange(len(spans)).repeat_interleave(torch.tensor([*map(len, spans)])),
        phrase_span=torch.cat(spans),
        phrase_box=torch.cat([one.boxes for one in further]) if further else torch.zeros(sum(map(len, spans)), 4),
        phrase_mask=None,
        negatives=negatives,
        negative_caption=torch.tensor([n for n, one in enumerate(further) for _ in one.negatives], dtype=torch.long),
        **_image_features(samples),
        words=_padded([words for sample in samples for words in sample.words]),
        negative_words=_padded_if_any([words for one in further for words in one.negative_words]),
        region_words=_padded_if_any([words for one in further for words in one.region_words]),
    )


def collate_whole(samples: Sequence[tuple[Sample, CachedSample]]) -> CachedBatch:
    """The `collate_fn` of evaluation DataLoaders. The batch has all parts of the samples, and their features.

    Args:
        samples: Each sample with its features. The last captions of the features are the hard negatives.
    """
    words = [x for sample, kept in samples for x in kept.words[: len(sample.captions)]]
    negative_words = [x for sample, kept in samples for x in kept.words[len(sample.captions) :]]
    return CachedBatch(
        **vars(collate_samples([sample for sample, _ in samples])),
        **_image_features([kept for _, kept in samples]),
        words=_padded(words),
        negative_words=_padded_if_any(negative_words),
        region_words=_padded_if_any([x for _, kept in samples for one in kept.further for x in one.region_words]),
    )


def _image_features(samples: Sequence[CachedSample]) -> dict[str, Any]:
    """The fields of a batch that contain the features of the images."""
    class_tokens = [sample.class_token for sample in samples if sample.class_token is not None]
    masks = [sample.mask for sample in samples if sample.mask is not None]
    return {
        "patches": torch.stack([sample.patches for sample in samples]),
        "class_tokens": torch.stack(class_tokens) if class_tokens else None,
        "patch_mask": torch.stack(masks) if masks else None,
    }


def _padded(words: list[Tensor]) -> Float[Tensor, "T L E"]:
    """Pad all captions to the length of the longest, and to at least one position."""
    padded = pad_sequence(words, batch_first=True)
    return padded if padded.shape[1] else pad(padded, (0, 0, 0, 1))


def _padded_if_any(words: list[Tensor]) -> Float[Tensor, "T L E"] | None:
    return _padded(words) if words else None


def embed(encoder: Any, batch: CachedBatch, selection: Selection) -> tuple[Images, Texts, Tokens]:
    """The embeddings that the heads of `encoder`, a `TwoTowers`, compute from the features of a batch."""
    class_tokens = None if batch.class_tokens is None else batch.class_tokens.float()
    images = encoder.project_images(batch.patches.float(), class_tokens, batch.patch_mask)
    return images, *embed_texts(encoder, batch.captions, batch.words, selection)


def embed_texts(
    encoder: Any, captions: list[str], words: Float[Tensor, "T L E"], selection: Selection
) -> tuple[Texts, Tokens]:
    """The embeddings that the text head of `encoder`, a `TwoTowers`, computes from the features of captions.

    Raises:
        UserError: If the number of tokens is not the same as when the features were computed.
    """
    tokens = encoder.tokenize(captions).to(words.device)
    length = words.shape[1]
    if max(int(tokens.mask.sum(-1).max()), 1) != length:
        raise UserError(
            "the cached features do not belong to the tokens of the tokenizer: remove the folder of the features"
        )
    # Some tokenizers pad all captions to one length, which can exceed the longest caption of the batch.
    tokens = tokens.cut(length)
    return encoder.project_texts(words.float(), tokens, selection), tokens
