"""The texts that training sees: captions, their sentences, and long texts that are joined from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from patchword.data.tables.regions import Region
from patchword.data.tables.sentences import sentences

Join = Literal["none", "all", "prefixes"]


@dataclass(frozen=True)
class CaptionText:
    """A text of an image.

    Attributes:
        caption: The text.
        regions: Its phrases, and their boxes if they are known.
        negatives: Texts of the data that are wrong for the image.
    """

    caption: str
    regions: list[Region]
    negatives: list[str]


def by_sentence(texts: Sequence[CaptionText]) -> list[CaptionText]:
    """Return every sentence as a text, with the phrases that are inside the sentence."""
    found = []
    for text in texts:
        for start, end in sentences(text.caption):
            inside = [region for region in text.regions if start <= region.start and region.end <= end]
            found.append(CaptionText(text.caption[start:end], _moved(inside, -start), text.negatives))
    return found


def joined(texts: Sequence[CaptionText], join: Join) -> list[CaptionText]:
    """Return the texts of an image, of which there is at least one, with those that `join` makes from them.

    With `all`, a long text of all of them comes first. With `prefixes`, the n-th text consists of the first n.
    """
    if join == "all":
        return [_long(texts), *texts]
    if join == "prefixes":
        return [_long(texts[: n + 1]) for n in range(len(texts))]
    return [*texts]


def _long(texts: Sequence[CaptionText]) -> CaptionText:
    """Join texts with spaces. Their phrases move with them."""
    regions: list[Region] = []
    start = 0
    for text in texts:
        regions += _moved(text.regions, start)
        start += len(text.caption) + 1
    return CaptionText(" ".join(text.caption for text in texts), regions, texts[0].negatives)


def _moved(regions: Sequence[Region], by: int) -> list[Region]:
    return [replace(region, start=region.start + by, end=region.end + by) for region in regions]
