"""The file format of an alignment, and the checks of files that may come from anyone."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchword.errors import UserError
from patchword.files.atomic_write import atomic_write
from patchword.files.npz import read_npz
from patchword.files.printable import printable
from patchword.maps.alignment import Alignment, Photo, Region

LARGEST = 2**29  # maximum size of all arrays together in bytes
_PLAIN = (
    "tokens",
    "content",
    "unknown",
    "score",
    "measure",
    "pruned",
)  # fields that are stored as JSON without conversion
_NAME = re.compile(r"[A-Za-z][\w ]{0,39}", re.ASCII)  # valid name of a map source or measure


def save(alignment: Alignment, path: Path) -> None:
    """See `Alignment.save`."""
    photo = None if alignment.photo is None else {"size": alignment.photo.size, "seen": alignment.photo.seen}
    words = json.dumps(
        {"caption": alignment.caption, "spans": alignment.spans, "grid": alignment.grid, "photo": photo}
        | {name: getattr(alignment, name) for name in _PLAIN}
        | {"regions": [asdict(region) for region in alignment.regions]}
    )
    arrays = {f"map_{source}": values.float().numpy() for source, values in alignment.maps.items()}
    if alignment.masks is not None:
        arrays["masks"] = alignment.masks.numpy()
    if alignment.photo is not None:
        arrays["photo"] = alignment.photo.pixels.numpy()
    try:
        with atomic_write(path, "wb") as file:
            np.savez_compressed(file, words=np.array(words), pixels=alignment.pixels.numpy(), **arrays)  # type: ignore[arg-type]
    except OSError as error:
        raise UserError(f"cannot write the maps {path}: {error.strerror}") from error


def load(path: Path) -> Alignment:
    """See `Alignment.load`."""
    try:
        return _alignment(read_npz(path, LARGEST))
    except FileNotFoundError as error:
        raise UserError(f"{printable(path)}: no such file") from error
    except (ValueError, RecursionError, OverflowError) as error:
        reason = printable(str(error))
        raise UserError(f"{printable(path)} is not a file of alignment maps from patchword ({reason})") from error


def _alignment(arrays: dict[str, np.ndarray]) -> Alignment:
    words: Any = _words(arrays)
    caption, grid, spans = (words.get(name) for name in ("caption", "grid", "spans"))
    _require(isinstance(caption, str) and _is_utf8(caption), "caption")
    _require(_are_numbers(grid, 2) and min(grid) >= 1, "grid")
    _require(isinstance(spans, list) and all(_are_numbers(span, 2) for span in spans), "spans")
    _require(all(0 <= start <= end <= len(caption) for start, end in spans), "spans")
    count, patches = len(spans), grid[0] * grid[1]
    sources = {name[4:]: name for name in arrays if name.startswith("map_")}
    _require(bool(sources) and all(map(_NAME.fullmatch, sources)), "maps")
    pixels = _array(arrays, "pixels", np.uint8, (3, None, None))
    masks = _array(arrays, "masks", np.bool_, (count, *pixels.shape[1:])) if "masks" in arrays else None
    shown = _array(arrays, "photo", np.uint8, (3, None, None)) if "photo" in arrays else None
    return Alignment(
        pixels=pixels,
        caption=caption,
        spans=[(start, end) for start, end in spans],
        maps={source: _array(arrays, name, np.float32, (count, patches)) for source, name in sources.items()},
        grid=(grid[0], grid[1]),
        masks=masks,
        photo=None if shown is None else _photo(words.get("photo"), shown),
        regions=_regions(words.get("regions", []), grid),
        **_plain(words, count),
    )


def _words(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    array = arrays.get("words")
    _require(array is not None and array.dtype.kind == "U" and array.shape == (), "words")
    words = json.loads(str(array))
    _require(isinstance(words, dict), "words")
    return words


def _array(arrays: dict[str, np.ndarray], name: str, dtype: Any, shape: tuple[int | None, ...]) -> Tensor:
    """Return an array as a tensor after checking its type and shape; None in `shape` means any size of at least 1."""
    found: Any = arrays.get(name)
    _require(found is not None and found.dtype == dtype and found.ndim == len(shape), name)
    _require(all(n == side or (side is None and n > 0) for n, side in zip(found.shape, shape, strict=True)), name)
    return torch.from_numpy(np.ascontiguousarray(found))


def _plain(words: dict[str, Any], count: int) -> dict[str, Any]:
    found = {name: words[name] for name in _PLAIN if name in words}
    tokens = found.get("tokens")
    _require(tokens is None or (_are_numbers(tokens, count) and min(tokens, default=0) >= 0), "tokens")
    for name in ("content", "unknown"):
        flags = found.get(name)
        are_flags = isinstance(flags, list) and len(flags) == count and all(isinstance(one, bool) for one in flags)
        _require(flags is None or are_flags, name)
    _require(found.get("score") is None or _is_number(found["score"], float), "score")
    measure = found.get("measure", "value")
    _require(isinstance(measure, str) and bool(_NAME.fullmatch(measure)), "measure")
    _require(isinstance(found.get("pruned", False), bool), "pruned")
    return found if found.get("score") is None else found | {"score": float(found["score"])}


def _photo(words: Any, pixels: Tensor) -> Photo:
    _require(isinstance(words, dict), "photo")
    size, seen = words.get("size"), words.get("seen")
    _require(_are_numbers(size, 2) and min(size) >= 1 and max(size) < 2**31, "photo")
    _require(_are_numbers(seen, 4, float) and all(map(math.isfinite, seen)), "photo")
    left, top, right, bottom = seen
    _require(-1e-6 < left < right < 1 + 1e-6 and -1e-6 < top < bottom < 1 + 1e-6, "photo")
    return Photo(pixels, (size[0], size[1]), (left, top, right, bottom))


def _regions(found: Any, grid: list[int]) -> list[Region]:
    _require(isinstance(found, list) and all(isinstance(one, dict) for one in found), "regions")
    regions = []
    for one in found:
        box, confidence = one.get("box"), one.get("confidence")
        _require(_are_numbers(box, 4) and _is_number(confidence, float), "regions")
        top, left, bottom, right = box
        _require(0 <= top < bottom <= grid[0] and 0 <= left < right <= grid[1], "regions")
        _require(not (confidence < 0 or confidence > 1), "regions")  # NaN is valid: a broken model can return it.
        regions.append(Region((top, left, bottom, right), float(confidence)))
    return regions


def _is_number(value: Any, kind: type = int) -> bool:
    """Return whether a JSON value is a whole number, or any number if `kind` is float; booleans are not numbers."""
    return isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)


def _are_numbers(value: Any, count: int, kind: type = int) -> bool:
    return isinstance(value, list) and len(value) == count and all(_is_number(one, kind) for one in value)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _require(right: bool, name: str) -> None:
    if not right:
        raise ValueError(f"'{name}' is missing or invalid")
