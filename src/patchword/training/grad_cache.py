"""Computes the loss of a large batch in the memory of one chunk (gradient caching).

This is GradCache (Gao et al., RepL4NLP 2021, arXiv 2101.06983), implemented with activation checkpointing. The
activations of a chunk are discarded when its features are computed, and recomputed in the backward pass. The loss and
the gradients are those of the complete batch, and the towers run forward twice. Dropout draws the same numbers both
times. There is one ordinary backward pass, so autocast, loss scaling, clipping and distributed training work as usual.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from jaxtyping import UInt8
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from patchword.encoders.base import Encoder, Selection, Tokens
from patchword.encoders.checkpointing import spare_buffers
from patchword.features import Images, Texts

Features = TypeVar("Features", Images, Texts)


def encode_images(encoder: Encoder, pixels: UInt8[Tensor, "I _ H W"], size: int | None) -> Images:
    """Run `encoder.encode_images` on at most `size` images at a time; None for all images at once."""
    if size is None or len(pixels) <= size:
        return encoder.encode_images(pixels)
    return _joined([_forgotten(encoder, encoder.encode_images, part) for part in pixels.split(size)])


def encode_texts(encoder: Encoder, tokens: Tokens, selection: Selection, size: int | None) -> Texts:
    """Run `encoder.encode_texts` on at most `size` captions at a time; None for all captions at once."""
    if size is None or len(tokens.captions) <= size:
        return encoder.encode_texts(tokens, selection)

    def encode(ids: Tensor, part: Tokens) -> Texts:
        return encoder.encode_texts(part, selection)

    return _joined([_forgotten(encoder, encode, part.ids, part) for part in _split(tokens, size)])


def has_batch_norm(encoder: nn.Module) -> bool:
    """Whether the encoder has batch norms in training mode, which make features depend on the complete chunk."""
    return any(isinstance(part, _NormBase) and part.training for part in encoder.modules())


def _forgotten(encoder: nn.Module, encode: Callable[..., Features], tensor: Tensor, *more: Tokens) -> Features:
    """Run `encode(tensor, *more)` and discard its activations; `tensor` tells torch whose random state to keep."""

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), spare_buffers(encoder)

    return checkpoint(encode, tensor, *more, use_reentrant=False, context_fn=contexts)


def _split(tokens: Tokens, size: int) -> Iterator[Tokens]:
    for start in range(0, len(tokens.captions), size):
        part = slice(start, start + size)
        yield replace(tokens, **{field.name: getattr(tokens, field.name)[part] for field in fields(tokens)})


def _joined(parts: list[Features]) -> Features:
    changes: dict[str, Any] = {
        name: torch.cat([getattr(part, name) for part in parts])
        for name, value in vars(parts[0]).items()
        if isinstance(value, Tensor)
    }
    return replace(parts[0], **changes)
