"""An alignment: one image, one caption, and where one model sees parts of the caption in the image.

What `look` makes of a photo, what `test` keeps of its first samples, and what figures, reports and the viewer draw.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from patchword.errors import InputError


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
    """

    pixels: UInt8[Tensor, "3 H W"]
    caption: str
    spans: list[tuple[int, int]]
    maps: dict[str, Float[Tensor, "N P"]]
    grid: tuple[int, int]
    masks: Bool[Tensor, "N H W"] | None = None

    @property
    def words(self) -> list[str]:
        """The N parts of the caption as strings."""
        return [self.caption[start:end] for start, end in self.spans]

    def save(self, path: Path) -> None:
        """Write a compressed `.npz` file; its folder is made where there is none.

        Raises:
            InputError: If the file cannot be written.
        """
        words = json.dumps({"caption": self.caption, "spans": self.spans, "grid": self.grid})
        arrays = {f"map_{source}": values.numpy() for source, values in self.maps.items()}
        if self.masks is not None:
            arrays["masks"] = self.masks.numpy()
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
                )
        except FileNotFoundError as error:
            raise InputError(f"{path}: there is no such file") from error
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: not alignment maps that patchword has written ({error})") from error
