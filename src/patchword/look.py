"""Where a model sees the words of a caption, in any image: what the viewer and a notebook ask."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

from patchword.alignment import Alignment, Photo
from patchword.data.batch import Phrase, Sample, collate
from patchword.data.pixels import Preprocessing, rgb
from patchword.encoders.base import Tokens
from patchword.errors import InputError
from patchword.maps import TOKEN_SOURCES, Policy, phrase_maps, queries
from patchword.viewer.details import details

if TYPE_CHECKING:
    from patchword.module import AlignmentModule

LARGEST = 1024  # longer side of a photo that is kept to be shown

_WORD = re.compile(r"\w+(?:[^\w\s]+\w+)*|[^\w\s]+")  # a word such as "don't", or punctuation


def look(
    module: AlignmentModule,
    image: Image.Image,
    caption: str,
    phrases: Sequence[str] | None = None,
    whole: bool = False,
) -> Alignment:
    """Maps of parts of `caption` over `image`, from every source, on the CPU.

    Args:
        module: A trained module, in eval mode.
        image: Any image of any size. The model sees its central square, scaled to what the encoder takes.
        caption: The caption.
        phrases: Parts of the caption, read as `module.query` says; None for each of its words and what stands between
            them. The mean of words' maps, weighted by their tokens, is then a phrase's map (but for several function
            words alone, if `module.tokens` leaves them out and the objective lets words compete, as LOUPE does).
        whole: Let the model see the whole image, stretched to a square, and not its centre.

    Raises:
        InputError: If a phrase is not a part of the caption.
    """
    upright = rgb(ImageOps.exif_transpose(image))
    photo, pixels = _photo(upright, whole), _pixels(upright, module.encoder.image_size, whole)
    if phrases is None:
        spans, policy = _words(caption, module.encoder.tokenize([caption])), _words_policy(module.query)
    else:
        spans, policy = [_place(caption, phrase) for phrase in phrases], module.query
    size = pixels.shape[1:]
    box, everywhere = (0.0, 0.0, float(size[1]), float(size[0])), torch.ones(size, dtype=torch.bool)
    asked_for = [Phrase(start, end, box, everywhere) for start, end in spans]
    batch = collate([Sample(0, pixels, [caption], [asked_for], [])]).to(module.device)
    images, texts, tokens = module(batch)
    asked = queries(policy, batch, images, texts, tokens, module.encoder, module.tokens)
    content = tokens.within(batch.phrase_caption, batch.phrase_span) & tokens.select("content")
    return Alignment(
        pixels=pixels,
        caption=caption,
        spans=spans,
        maps={source: phrase_maps(source, module.objective, asked).cpu() for source in TOKEN_SOURCES},
        grid=images.grid,
        photo=photo,
        tokens=asked.tokens.sum(-1).tolist(),
        content=[True] * len(spans) if policy == "span" else content.any(-1).tolist(),
        score=module.objective.score(images, texts).item(),
        **details(module.objective, images),
    )


def _photo(image: Image.Image, whole: bool) -> Photo:
    """The whole image, small enough to show, and which part of it the model sees."""
    width, height = image.size
    side = min(width, height)
    x, y = (0.0, 0.0) if whole else ((1 - side / width) / 2, (1 - side / height) / 2)
    scale = min(LARGEST / max(width, height), 1)
    shown = image.resize((max(round(width * scale), 1), max(round(height * scale), 1)), reducing_gap=3.0)
    return Photo(_tensor(shown), (width, height), (x, y, 1 - x, 1 - y))


def _pixels(image: Image.Image, size: tuple[int, int], whole: bool) -> UInt8[Tensor, "3 H W"]:
    """What the model sees of the image."""
    if whole:
        return _tensor(image.resize((size[1], size[0]), Image.Resampling.BICUBIC, reducing_gap=3.0))
    return Preprocessing().view(*image.size, size[0]).image(image)


def _tensor(image: Image.Image) -> UInt8[Tensor, "3 H W"]:
    return torch.from_numpy(np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)))


def _words_policy(query: Policy) -> Policy:
    """How single words are read so that the mean of their maps is the phrase's: in the caption, not `alone`."""
    return "span" if query == "span" else "content"


def _words(caption: str, tokens: Tokens) -> list[tuple[int, int]]:
    """First and one past the last character of each word. Each token is in one part of the result.

    Words that share a token are one part; a token that is a space is a part of its own, for a phrase has it, too.
    """
    found = [word.span() for word in _WORD.finditer(caption)]
    for first, last in tokens.spans[0].tolist():
        if first < last:
            shared = [(start, end) for start, end in found if start < last and end > first]
            own = shared or [(first, last)]
            found = sorted({*found} - {*shared} | {(own[0][0], own[-1][1])})
    return found


def _place(caption: str, phrase: str) -> tuple[int, int]:
    """First and one past the last character of `phrase`."""
    if not phrase or phrase not in caption:
        raise InputError(f"the phrase {phrase!r} is not a part of the caption {caption!r}")
    start = caption.index(phrase)
    return start, start + len(phrase)
