"""The data that the viewer's script reads: plain values, with maps in base64 and photos as data URLs."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping
from io import BytesIO
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image
from torch import Tensor

from patchword.maps.alignment import Alignment, Photo

_SMALL = 200  # longer side in pixels up to which photos are stored without loss


def payload(panels: Mapping[str, Alignment]) -> dict[str, Any]:
    """Return everything that the viewer's script needs, ready for JSON.

    Python and JavaScript count characters differently, so the one caption of all panels is already split into pieces.
    """
    photos: dict[str, int] = {}  # A photo that several panels share is written once.
    shown = []
    for name, alignment in panels.items():
        photo = alignment.photo or _all_seen(alignment)
        number = photos.setdefault(_data_url(photo.pixels), len(photos))
        shown.append(_panel(name, alignment, photo) | {"photo": number})
    (caption,) = {alignment.caption for alignment in panels.values()}
    spans = [span for alignment in panels.values() for span in alignment.spans]
    return {"pieces": _pieces(caption, spans), "photos": list(photos), "panels": shown}


def _panel(name: str, alignment: Alignment, photo: Photo) -> dict[str, Any]:
    count = len(alignment.spans)
    tokens, content = alignment.tokens or [1] * count, alignment.content or [True] * count
    parts = zip(alignment.spans, tokens, content, alignment.unknown or [False] * count, strict=True)
    return {
        "name": name,
        "size": photo.size,
        "seen": photo.seen,
        "grid": alignment.grid,
        "parts": [[*span, *facts] for span, *facts in parts],
        "maps": {source: _base64(values) for source, values in alignment.maps.items()},
        "measure": alignment.measure,
        "pruned": alignment.pruned,
        "score": _in_json(alignment.score),
        "regions": [[*region.box, _in_json(region.confidence)] for region in alignment.regions],
        "pixels": tuple(alignment.pixels.shape[1:]),
        "outlines": [] if alignment.masks is None else [outline(mask) for mask in alignment.masks],
    }


def _pieces(caption: str, spans: Iterable[tuple[int, int]]) -> list[tuple[str, int, int, bool]]:
    """Split the caption into words and the text between them.

    A word is one part of a panel's caption, or several overlapping parts; parts that are white space are not words. A
    piece consists of its text, its first and one past its last character, and whether it is a word.
    """
    words: list[tuple[int, int]] = []
    for start, end in sorted({*spans}):
        if words and start < words[-1][1]:
            words[-1] = (words[-1][0], max(end, words[-1][1]))
        else:
            words.append((start, end))
    pieces, place = [], 0
    for start, end in words:
        word = caption[start:end]
        pieces += [(caption[place:start], place, start, False), (word, start, end, not word.isspace())]
        place = end
    pieces.append((caption[place:], place, len(caption), False))
    return [piece for piece in pieces if piece[0]]


def outline(mask: Bool[Tensor, "H W"]) -> str:
    """Return an SVG path along the borders of `mask`, in pixels from the top left corner."""
    padded = np.pad(mask.numpy(), 1)
    across = [f"M{x} {y}h{n}" for y, x, n in _runs(padded[1:, 1:-1] != padded[:-1, 1:-1])]
    down = [f"M{x} {y}v{n}" for x, y, n in _runs((padded[1:-1, 1:] != padded[1:-1, :-1]).T)]
    return "".join(across + down)


def _runs(edges: Bool[np.ndarray, "lines n"]) -> list[tuple[int, int, int]]:
    """Return the line, the first position and the length of each run of True."""
    steps = np.diff(np.pad(edges, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    lines, first = np.nonzero(steps == 1)
    last = np.nonzero(steps == -1)[1]
    return list(zip(lines.tolist(), first.tolist(), (last - first).tolist(), strict=True))


def _all_seen(alignment: Alignment) -> Photo:
    height, width = alignment.pixels.shape[1:]
    return Photo(alignment.pixels, (width, height), (0.0, 0.0, 1.0, 1.0))


def _in_json(value: float | None) -> float | str | None:
    """Return a number as it is if it is finite, else as text, because JSON has only finite numbers."""
    return value if value is None or math.isfinite(value) else str(value)


def _base64(values: Tensor) -> str:
    """Encode the values in single precision, little endian."""
    return base64.b64encode(values.numpy().astype("<f4").tobytes()).decode()


def _data_url(pixels: UInt8[Tensor, "3 h w"]) -> str:
    image, file = Image.fromarray(pixels.permute(1, 2, 0).numpy()), BytesIO()
    kind = "png" if max(image.size) <= _SMALL else "jpeg"
    image.save(file, kind, **({"quality": 88} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
