"""Maps of the words of any caption over any image, for the viewer and for notebooks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING
from warnings import warn

import numpy as np
import torch
from PIL import Image, ImageOps

from patchword.data.batch import Phrase, Sample, collate
from patchword.data.pixels import View, rgb
from patchword.encoders.base import Tokens
from patchword.errors import UserError
from patchword.files.printable import printable
from patchword.maps.alignment import Alignment, Photo
from patchword.maps.details import details
from patchword.maps.phrases import Policy, area_of, phrase_maps, queries
from patchword.maps.sources import TokenSource, require_sources

if TYPE_CHECKING:
    from patchword.module import AlignmentModule

LARGEST = 1024  # longer side of a photo that is kept to be shown

_WORD = re.compile(r"\w+(?:[^\w\s]+\w+)*|[^\w\s]+")  # a word such as "don't", or punctuation


def inspect(
    module: AlignmentModule,
    image: Image.Image,
    caption: str,
    phrases: Sequence[str] | None = None,
    whole: bool = False,
    sources: Sequence[TokenSource] | None = None,
) -> Alignment:
    """Compute maps of parts of `caption` over `image`, from several sources, on the CPU.

    Args:
        module: A trained module in eval mode.
        image: An image of any size. It is preprocessed by `encoder.preprocessing`, as in `predict`.
        caption: The caption.
        phrases: Parts of the caption, queried according to `module.phrase_query`; None for each word of the caption and
            each token between words. The map of a phrase is then the mean of the maps of its words, weighted by their
            numbers of tokens (except for a phrase of several function words, if `module.token_selection` excludes them
            and words compete in the objective, as in LOUPE).
        whole: Whether to stretch the complete image to a square. Training uses the scenes of this package in this way.
        sources: The sources of maps, see `maps.sources`; None for the `map_sources` of the module.

    Raises:
        UserError: If the model cannot give maps of a source, if a phrase is not a part of the caption, or if the
            tokenizer cuts it off, so that it has no map.
    """
    sources = module.map_sources if sources is None else sources
    require_sources(sources, module.encoder, "sources")
    upright = rgb(ImageOps.exif_transpose(image))
    preprocessing = module.encoder.preprocessing.with_resize_mode("stretch" if whole else "backbone")
    view = preprocessing.view(*upright.size, module.encoder.image_size[0])
    photo, pixels = _photo(upright, view), view.image(upright)
    if phrases is None:
        spans = _words(caption, module.encoder.tokenize([caption]))
        # Words are always read in their caption: the mean of their maps is the map of the phrase.
        policy: Policy = "span" if module.phrase_query == "span" else "content"
    else:
        spans, policy = [_place(caption, phrase) for phrase in phrases], module.phrase_query
    size = pixels.shape[1:]
    box, everywhere = (0.0, 0.0, float(size[1]), float(size[0])), torch.ones(size, dtype=torch.bool)
    asked_for = [Phrase(start, end, box, everywhere) for start, end in spans]
    batch = collate([Sample(0, pixels, [caption], [asked_for], [])]).to(module.device)
    images, texts, tokens = module(batch)
    asked = queries(policy, batch, images, texts, tokens, module.encoder, module.token_selection)
    _require_tokens([caption[start:end] for start, end in spans], asked.query.any(-1).tolist(), phrases is None)
    inside = tokens.within(batch.phrase_caption, batch.phrase_span)
    area = area_of(images.shapes[0], images.grid)
    return Alignment(
        pixels=area.cut(pixels),
        caption=caption,
        spans=spans,
        maps={source: area.crop(phrase_maps(source, module.objective, asked)).cpu() for source in sources},
        grid=area.grid,
        photo=photo,
        tokens=asked.query.sum(-1).tolist(),
        content=[True] * len(spans) if policy == "span" else (inside & tokens.select("content")).any(-1).tolist(),
        unknown=(inside & tokens.unknown).any(-1).tolist(),
        score=module.objective.score(images, texts).item(),
        **details(module.objective, images),
    )


def _photo(image: Image.Image, view: View) -> Photo:
    """The complete image, small enough to show, and the part of it that the model sees."""
    width, height = image.size
    left, top, right, bottom = view.source
    scale = min(LARGEST / max(width, height), 1)
    shown = image.resize((max(round(width * scale), 1), max(round(height * scale), 1)), reducing_gap=3.0)
    pixels = torch.from_numpy(np.ascontiguousarray(np.asarray(shown).transpose(2, 0, 1)))
    return Photo(pixels, (width, height), (left / width, top / height, right / width, bottom / height))


def _require_tokens(parts: list[str], kept: list[bool], words: bool) -> None:
    """Warn of `words` of a long caption that have no tokens, so that their maps are zero; refuse such phrases."""
    cut = [part for part, own in zip(parts, kept, strict=True) if not own and not part.isspace()]
    if not cut:
        return
    if not words:
        raise UserError(
            f"the phrase {printable(cut[0])!r} has no map: it has no tokens, or it comes after the last token that the "
            "text tower reads; shorten the caption"
        )
    warn(
        f"{len(cut)} of {len(parts)} words of the caption have no map, because the text tower does not read them. They "
        f"have no tokens, or come after its last token; the first is {printable(cut[0])!r}",
        stacklevel=4,
    )


def _words(caption: str, tokens: Tokens) -> list[tuple[int, int]]:
    """The first character of each word and one past its last. Each token is in exactly one part of the result.

    Words that share a token are one part. A token that is a space is a separate part, because phrases contain it too.
    """
    found = [word.span() for word in _WORD.finditer(caption)]
    for first, last in tokens.spans[0].tolist():
        if first < last:
            shared = [(start, end) for start, end in found if start < last and end > first]
            own = shared or [(first, last)]
            found = sorted({*found} - {*shared} | {(own[0][0], own[-1][1])})
    return found


def _place(caption: str, phrase: str) -> tuple[int, int]:
    """The first character of `phrase` and one past its last."""
    if not phrase or phrase not in caption:
        raise UserError(f"the phrase {phrase!r} is not a part of the caption {caption!r}")
    start = caption.index(phrase)
    return start, start + len(phrase)
