"""An alignment: one image, one caption, and where one model sees parts of the caption in the image.

What `look` makes of a photo, what `test` keeps of its first samples, and what figures, reports and the viewer draw.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from patchword.errors import InputError


@dataclass(frozen=True)
class Photo:
    """The image that the pixels which the model saw were cut from.

    Attributes:
        pixels: The whole image, upright, no larger than a screen shows.
        size: Width and height of the original in pixels.
        seen: Left, top, right, bottom of what the model saw, as shares of width and height.
    """

    pixels: UInt8[Tensor, "3 h w"]
    size: tuple[int, int]
    seen: tuple[float, float, float, float]


@dataclass(frozen=True)
class Region:
    """A box of patches that a model proposes as one thing.

    Attributes:
        box: First row, first column, and one past the last row and column, in patches.
        confidence: How sure the model is, from 0 to 1.
    """

    box: tuple[int, int, int, int]
    confidence: float


@dataclass(frozen=True)
class Alignment:
    """The maps of N parts of a caption (words, phrases) over one image, on the CPU.

    Attributes:
        pixels: The image as the model saw it.
        caption: The caption.
        spans: First and one past the last character of each part in the caption.
        maps: For each source (`align`, `cosine`, `dot`), a map per part; higher means more of it.
        grid: Rows and columns of a map.
        masks: The visible pixels of each part's object, where they are known.
        photo: The whole image, where the model saw a part of it or in another shape.
        tokens: The number of tokens whose mean is a part's map, its weight in the mean of several parts; 0 for parts
            that the tokenizer cut off. None for one each.
        content: False for parts, such as function words, that the map of a phrase leaves out unless it has no other.
            None if all count.
        score: How well the image fits the caption, as the model ranks.
        measure: What the map of `align` measures: `value`, or a name such as `weight` or `interaction`.
        pruned: Whether the zeros of `align` are patches that the model has sorted out.
        regions: What the model takes for things, most confident first.
    """

    pixels: UInt8[Tensor, "3 H W"]
    caption: str
    spans: list[tuple[int, int]]
    maps: dict[str, Float[Tensor, "N P"]]
    grid: tuple[int, int]
    masks: Bool[Tensor, "N H W"] | None = None
    photo: Photo | None = None
    tokens: list[int] | None = None
    content: list[bool] | None = None
    score: float | None = None
    measure: str = "value"
    pruned: bool = False
    regions: list[Region] = field(default_factory=list)

    @property
    def words(self) -> list[str]:
        """The N parts of the caption as strings."""
        return [self.caption[start:end] for start, end in self.spans]

    def save(self, path: Path) -> None:
        """Write a compressed `.npz` file; its folder is made where there is none.

        Raises:
            InputError: If the file cannot be written.
        """
        photo = None if self.photo is None else {"size": self.photo.size, "seen": self.photo.seen}
        words = json.dumps(
            {"caption": self.caption, "spans": self.spans, "grid": self.grid, "photo": photo}
            | {name: getattr(self, name) for name in _PLAIN}
            | {"regions": [asdict(region) for region in self.regions]}
        )
        arrays = {f"map_{source}": values.numpy() for source, values in self.maps.items()}
        if self.masks is not None:
            arrays["masks"] = self.masks.numpy()
        if self.photo is not None:
            arrays["photo"] = self.photo.pixels.numpy()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(path, words=np.array(words), pixels=self.pixels.numpy(), **arrays)  # type: ignore[arg-type]
        except OSError as error:
            raise InputError(f"cannot write the maps {path}: {error.strerror}") from error

    @classmethod
    def load(cls, path: Path) -> Alignment:
        """What `save` has written.

        Raises:
            InputError: If the file is missing or is not of this kind.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                words = json.loads(str(file["words"]))
                return cls(
                    pixels=torch.from_numpy(file["pixels"]),
                    caption=words["caption"],
                    spans=[(start, end) for start, end in words["spans"]],
                    maps={name[4:]: torch.from_numpy(file[name]) for name in file.files if name.startswith("map_")},
                    grid=(words["grid"][0], words["grid"][1]),
                    masks=torch.from_numpy(file["masks"]) if "masks" in file.files else None,
                    photo=_photo(words["photo"], file["photo"]) if "photo" in file.files else None,
                    regions=[Region(tuple(r["box"]), r["confidence"]) for r in words.get("regions", [])],
                    **{name: words[name] for name in _PLAIN if name in words},
                )
        except FileNotFoundError as error:
            raise InputError(f"{path}: there is no such file") from error
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: not alignment maps that patchword has written ({error})") from error


_PLAIN = ("tokens", "content", "score", "measure", "pruned")  # fields that JSON takes as they are


def _photo(words: dict[str, Any], pixels: np.ndarray) -> Photo:
    left, top, right, bottom = words["seen"]
    return Photo(torch.from_numpy(pixels), (words["size"][0], words["size"][1]), (left, top, right, bottom))
