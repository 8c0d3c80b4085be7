"""Compute the features of samples with frozen towers."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from patchword.cached.batch import CachedSample
from patchword.data.batch import Batch
from patchword.encoders.naflex import patch_mask
from patchword.encoders.two_towers import TwoTowers
from patchword.errors import UserError

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
        words = _words(encoder, batch, [ids[owner] for owner in owners], dtype)
    patches, masks = _kept(patches, dtype, ids), patch_mask(batch.images.cpu(), encoder.grid)
    class_tokens = None if class_tokens is None else _kept(class_tokens, dtype, ids)
    phrases = batch.phrase_caption.cpu().bincount(minlength=len(owners)).tolist()
    spans = batch.phrase_span.cpu().split(phrases)
    captions: list[list[int]] = [[] for _ in ids]
    for caption, owner in enumerate(owners):
        captions[owner].append(caption)
    return [
        CachedSample(
            id=id,
            patches=patches[i],
            class_token=None if class_tokens is None else class_tokens[i],
            mask=None if masks is None else masks[i],
            captions=[batch.captions[caption] for caption in captions[i]],
            words=[words[caption] for caption in captions[i]],
            spans=[spans[caption] for caption in captions[i]],
        )
        for i, id in enumerate(ids)
    ]


def _images(encoder: TwoTowers, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """The image tower's features of patches and class tokens."""
    size = _ON_CPU if images.device.type == "cpu" else len(images)
    patches, class_tokens = zip(*map(encoder.image, images.split(size)), strict=True)
    return torch.cat(patches), None if class_tokens[0] is None else torch.cat(class_tokens)


def bytes_of(sample: CachedSample) -> int:
    """The size of a sample on disk, in bytes."""
    patches = sample.patches if sample.mask is None else sample.patches[sample.mask]
    tensors: list[Tensor] = [patches, *sample.words, *sample.spans]
    tensors += [] if sample.class_token is None else [sample.class_token]
    return sum(x.numel() * x.element_size() for x in tensors)


def _words(encoder: TwoTowers, batch: Batch, ids: list[int], dtype: torch.dtype) -> list[Float[Tensor, "_ W"]]:
    """The token features of each caption, without padding; `ids` are the sample ids of the captions."""
    found: dict[int, Tensor] = {}
    by_length = encoder.tokenize(batch.captions).mask.sum(-1).argsort(stable=True)
    for part in by_length.split(len(batch)):
        chosen = part.tolist()
        tokens = encoder.tokenize([batch.captions[i] for i in chosen]).to(batch.images.device)
        features = encoder.text(tokens).masked_fill(~tokens.mask[..., None], 0)
        kept = _kept(features, dtype, [ids[i] for i in chosen])
        found |= {i: x[:length] for i, x, length in zip(chosen, kept, tokens.mask.sum(-1).tolist(), strict=True)}
    return [found[i] for i in range(len(found))]


def _kept(features: Tensor, dtype: torch.dtype, ids: list[int]) -> Tensor:
    """The features in `dtype` on the CPU; all must be finite. The features at each position are of the sample `ids`."""
    features = features.to(dtype)
    finite = features.isfinite().flatten(1).all(1)
    if not finite.all():
        of, kept = ids[int(finite.int().argmin())], str(dtype).removeprefix("torch.")
        remedy = "set dtype to float32" if dtype == torch.float16 else "check the image and the weights of the towers"
        raise UserError(f"a feature of sample {of} is not finite in {kept}: {remedy}")
    return features.cpu()
