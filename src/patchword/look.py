"""Where a model sees the words of a caption, in any image: what a notebook asks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from patchword.data.batch import Phrase, Sample, collate
from patchword.data.pixels import CentreCrop
from patchword.encoders.base import FUNCTION_WORDS
from patchword.errors import InputError
from patchword.maps import TOKEN_SOURCES, phrase_maps, phrase_texts, queries

if TYPE_CHECKING:
    from PIL.Image import Image

    from patchword.module import AlignmentModule


def look(
    module: AlignmentModule, image: Image, caption: str, phrases: Sequence[str] | None = None
) -> tuple[UInt8[Tensor, "3 H W"], list[str], dict[str, Float[Tensor, "N P"]]]:
    """Maps of phrases of `caption` over `image`, from every source.

    Args:
        module: A trained module, in eval mode.
        image: Any image; its central square is scaled to what the encoder takes.
        caption: The caption.
        phrases: Parts of the caption; None for each of its content words.

    Returns:
        The pixels that the model saw, the phrases that have a map, and for each source their maps on the CPU: what
        `patchword.plots.overlay` draws.

    Raises:
        InputError: If a phrase is not a part of the caption.
    """
    size = module.encoder.image_size[0]
    pixels = CentreCrop(*image.size, size).image(image.convert("RGB"))
    box, everywhere = (0.0, 0.0, float(size), float(size)), torch.ones(size, size, dtype=torch.bool)
    asked_for = [Phrase(start, end, box, everywhere) for start, end in _places(caption, phrases)]
    batch = collate([Sample(0, pixels, [caption], [asked_for], [])]).to(module.device)
    images, texts, tokens = module(batch)
    asked = queries(module.query, batch, images, texts, tokens, module.encoder, module.tokens)
    words = [text for text, kept in zip(phrase_texts(batch), asked.kept.tolist(), strict=True) if kept]
    return pixels, words, {s: phrase_maps(s, module.objective, asked)[asked.kept].cpu() for s in TOKEN_SOURCES}


def _places(caption: str, phrases: Sequence[str] | None) -> list[tuple[int, int]]:
    """First and one past the last character of each phrase."""
    if phrases is None:
        words = re.finditer(r"\w+", caption)
        return [word.span() for word in words if word.group().lower() not in FUNCTION_WORDS]
    for phrase in phrases:
        if not phrase or phrase not in caption:
            raise InputError(f"the phrase {phrase!r} is not a part of the caption {caption!r}")
    return [(caption.index(phrase), caption.index(phrase) + len(phrase)) for phrase in phrases]
