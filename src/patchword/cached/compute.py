"""Compute the features of samples with frozen towers."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchword.cached.batch import CachedSample
from patchword.cached.further import Further
from patchword.data.batch import Batch
from patchword.encoders.naflex import patch_mask
from patchword.encoders.two_towers import TwoTowers
from patchword.errors import UserError
from patchword.objective import Need

_ON_CPU = 8  # images at a time on the CPU, where larger batches are slower: their activations are new memory each time


def tower_features(
    encoder: TwoTowers, batch: Batch, dtype: torch.dtype, context: AbstractContextManager[Any]
) -> list[CachedSample]:
    """The features of each sample of a batch, on the CPU.

    The text tower reads captions of similar length together, as many at a time as there are images, so that it computes
    little padding.

    Args:
        encoder: An encoder with frozen towers.
        batch: A batch on the device of the encoder.
        dtype: The type of the features.
        context: The context in which the towers run, such as autocast.

    Raises:
        UserError: If a feature is not finite in `dtype`; the message names the sample.
    """
    ids, owners = batch.ids.tolist(), batch.caption_image.tolist()
    with torch.no_grad(), context:
        patches, class_tokens = _images(encoder, batch.images)
        words = _words(encoder, batch, batch.captions, owners, dtype)
    patches, masks = _kept(patches, dtype, ids), patch_mask(batch.images.cpu(), encoder.grid)
    class_tokens = None if class_tokens is None else _kept(class_tokens, dtype, ids)
    spans = _by_caption(batch.phrase_span, batch)
    return [
        CachedSample(
            id=id,
            patches=patches[i],
            class_token=None if class_tokens is None else class_tokens[i],
            mask=None if masks is None else masks[i],
            captions=[batch.captions[caption] for caption in captions],
            words=[words[caption] for caption in captions],
            spans=[spans[caption] for caption in captions],
        )
        for i, (id, captions) in enumerate(zip(ids, _grouped(owners, len(ids)), strict=True))
    ]


def text_features(
    encoder: TwoTowers,
    batch: Batch,
    needs: Iterable[Need],
    own_captions: bool,
    dtype: torch.dtype,
    context: AbstractContextManager[Any],
) -> list[CachedSample]:
    """The texts of each sample of a batch and what an objective needs besides, with features, on the CPU.

    The image has no patches.

    Args:
        encoder: An encoder with frozen towers.
        batch: A batch on the device of the encoder.
        needs: What the objective needs: `negatives`, `regions`, or both.
        own_captions: Whether the features of the captions are computed, and not only those of the other texts.
        dtype: The type of the features.
        context: The context in which the towers run, such as autocast.

    Raises:
        UserError: As for `tower_features`.
    """
    owners = batch.caption_image.tolist()
    none = torch.zeros(0, dtype=torch.long)
    regions, phrases = batch.regions() if "regions" in needs else (none, [])
    of_region = batch.phrase_caption.cpu()[regions.cpu()].tolist()
    negatives, of_negative = (batch.negatives, batch.negative_caption.tolist()) if "negatives" in needs else ([], [])
    captions = batch.captions if own_captions else []
    texts = [*captions, *negatives, *phrases]
    of_text = [*range(len(captions)), *of_negative, *of_region]
    with torch.no_grad(), context:
        words = _words(encoder, batch, texts, [owners[caption] for caption in of_text], dtype)
    first, second = len(captions), len(captions) + len(negatives)
    own, negative_words, region_words = words[:first], words[first:second], words[second:]
    spans = _by_caption(batch.phrase_span, batch)
    boxes = _by_caption(batch.phrase_box if "regions" in needs else torch.zeros_like(batch.phrase_box), batch)
    further = [
        Further(
            boxes=boxes[caption],
            negatives=[negatives[n] for n in its_negatives],
            negative_words=[negative_words[n] for n in its_negatives],
            region_words=[region_words[n] for n in its_regions],
        )
        for caption, (its_negatives, its_regions) in enumerate(
            zip(_grouped(of_negative, len(owners)), _grouped(of_region, len(owners)), strict=True)
        )
    ]
    empty = torch.zeros(0, 0, dtype=dtype)
    return [
        CachedSample(
            id=id,
            patches=empty,
            class_token=None,
            captions=[batch.captions[caption] for caption in captions],
            words=[own[caption] if own_captions else empty for caption in captions],
            spans=[spans[caption] for caption in captions],
            further=[further[caption] for caption in captions],
        )
        for id, captions in zip(batch.ids.tolist(), _grouped(owners, len(batch)), strict=True)
    ]


def bytes_of(sample: CachedSample) -> int:
    """The size of a sample on disk, in bytes."""
    patches = sample.patches if sample.mask is None else sample.patches[sample.mask]
    tensors: list[Tensor] = [patches, *sample.words, *sample.spans]
    tensors += [] if sample.class_token is None else [sample.class_token]
    tensors += [x for one in sample.further for x in (one.boxes, *one.negative_words, *one.region_words)]
    return sum(x.numel() * x.element_size() for x in tensors)


def _images(encoder: TwoTowers, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """The image tower's features of patches and class tokens."""
    size = _ON_CPU if images.device.type == "cpu" else len(images)
    patches, class_tokens = zip(*map(encoder.image, images.split(size)), strict=True)
    return torch.cat(patches), None if class_tokens[0] is None else torch.cat(class_tokens)


def _words(
    encoder: TwoTowers, batch: Batch, texts: list[str], owners: list[int], dtype: torch.dtype
) -> list[Float[Tensor, "_ W"]]:
    """The token features of each text, without padding; equal texts are encoded once. `owners` are their images."""
    if not texts:
        return []
    image_of = dict(zip(texts, owners, strict=True))
    distinct, ids = [*image_of], batch.ids.tolist()
    found: dict[str, Tensor] = {}
    by_length = encoder.tokenize(distinct).mask.sum(-1).argsort(stable=True)
    for part in by_length.split(len(batch)):
        chosen = [distinct[i] for i in part.tolist()]
        tokens = encoder.tokenize(chosen).to(batch.images.device)
        features = encoder.text(tokens).masked_fill(~tokens.mask[..., None], 0)
        kept = _kept(features, dtype, [ids[image_of[text]] for text in chosen])
        lengths = tokens.mask.sum(-1).tolist()
        found |= {text: x[:length] for text, x, length in zip(chosen, kept, lengths, strict=True)}
    return [found[text] for text in texts]


def _kept(features: Tensor, dtype: torch.dtype, ids: list[int]) -> Tensor:
    """The features in `dtype` on the CPU; all must be finite. The features at each position are of the sample `ids`."""
    features = features.to(dtype)
    finite = features.isfinite().flatten(1).all(1)
    if not finite.all():
        of, kept = ids[int(finite.int().argmin())], str(dtype).removeprefix("torch.")
        remedy = "set dtype to float32" if dtype == torch.float16 else "check the image and the weights of the towers"
        raise UserError(f"a feature of sample {of} is not finite in {kept}: {remedy}")
    return features.cpu()


def _grouped(owners: list[int], number: int) -> list[list[int]]:
    """The positions of each owner in `owners`."""
    found: list[list[int]] = [[] for _ in range(number)]
    for position, owner in enumerate(owners):
        found[owner].append(position)
    return found


def _by_caption(of_phrases: Int[Tensor, "N 2"] | Float[Tensor, "N 4"], batch: Batch) -> tuple[Tensor, ...]:
    """The rows of the phrases of each caption."""
    return of_phrases.cpu().split(batch.phrase_caption.cpu().bincount(minlength=len(batch.captions)).tolist())
