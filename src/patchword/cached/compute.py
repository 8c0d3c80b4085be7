"""Run frozen towers over samples, and keep what they make of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from patchword.cached.batch import CachedSample
from patchword.cached.store import FeatureStore
from patchword.data.batch import Batch, Sample, collate
from patchword.encoders.two_towers import TwoTowers
from patchword.errors import InputError


def tower_features(
    encoder: TwoTowers, batch: Batch, dtype: torch.dtype, context: AbstractContextManager[Any]
) -> list[CachedSample]:
    """What the towers make of a batch, sample by sample, on the CPU.

    Args:
        encoder: Its towers are frozen.
        batch: On the device of the encoder.
        dtype: Of the result.
        context: In which the towers compute.

    Raises:
        InputError: If a feature is not finite in `dtype`; the message names the sample.
    """
    tokens = encoder.tokenize(batch.captions).to(batch.images.device)
    with torch.no_grad(), context:
        patches, class_tokens = encoder.image(batch.images)
        words = encoder.text(tokens)
    patches, words = patches.to(dtype).cpu(), words.to(dtype).cpu()
    class_tokens = None if class_tokens is None else class_tokens.to(dtype).cpu()
    lengths, owners = tokens.mask.sum(-1).tolist(), batch.caption_image.tolist()
    phrases = [batch.phrase_span[batch.phrase_caption == caption].cpu() for caption in range(len(owners))]
    found = []
    for i, id in enumerate(batch.ids.tolist()):
        own = [caption for caption, owner in enumerate(owners) if owner == i]
        found.append(
            CachedSample(
                id=id,
                patches=patches[i],
                class_token=None if class_tokens is None else class_tokens[i],
                captions=[batch.captions[caption] for caption in own],
                words=[words[caption, : lengths[caption]] for caption in own],
                spans=[phrases[caption] for caption in own],
            )
        )
        _require_finite(found[-1], dtype)
    return found


def parts(
    store: FeatureStore, wanted: list[int], samples: Dataset[Sample], batch_size: int, num_workers: int
) -> Iterator[tuple[int, Batch, bool]]:
    """For each batch of the wanted files: the file's number, the batch, and whether it is the last of the file."""
    plan = [
        (part, [*members[start : start + batch_size]], start + batch_size >= len(members))
        for part in wanted
        for members in [store.members(part)]
        for start in range(0, len(members), batch_size)
    ]
    loader = DataLoader(
        samples,
        batch_sampler=[indices for _, indices, _ in plan],
        num_workers=num_workers,
        collate_fn=collate,
        generator=torch.Generator().manual_seed(0),
    )
    for (part, _, last), batch in zip(plan, loader, strict=True):
        yield part, batch, last


def bytes_of(sample: CachedSample) -> int:
    """What a sample takes on disk."""
    tensors: list[Tensor] = [sample.patches, *sample.words, *sample.spans]
    tensors += [] if sample.class_token is None else [sample.class_token]
    return sum(x.numel() * x.element_size() for x in tensors)


def _require_finite(sample: CachedSample, dtype: torch.dtype) -> None:
    tensors = [sample.patches, *sample.words] + ([] if sample.class_token is None else [sample.class_token])
    if not all(x.isfinite().all() for x in tensors):
        kept = str(dtype).removeprefix("torch.")
        raise InputError(
            f"a feature of sample {sample.id} is not finite in {kept}"
            + (
                ": set dtype to float32"
                if dtype == torch.float16
                else ": look at the image, and at the towers' weights"
            )
        )
