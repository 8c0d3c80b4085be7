"""An alignment: one image, one caption, and a model's maps of parts of the caption over the image.

`inspect` returns the alignment of a photo, and `test` saves those of its first samples. Figures, reports and the viewer
show alignments.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from jaxtyping import Bool, Float, UInt8
from torch import Tensor


@dataclass(frozen=True)
class Photo:
    """The original image, of which the model saw all or a part.

    Attributes:
        pixels: The complete image, upright, scaled down to screen size if it is larger.
        size: The width and height of the original in pixels.
        seen: The left, top, right and bottom border of the part that the model saw, as shares of width and height.
    """

    pixels: UInt8[Tensor, "3 h w"]
    size: tuple[int, int]
    seen: tuple[float, float, float, float]


@dataclass(frozen=True)
class Region:
    """A box of patches that a model proposes as one region.

    Attributes:
        box: The first row, the first column, and one past the last row and column, in patches.
        confidence: The confidence of the model, from 0 to 1.
    """

    box: tuple[int, int, int, int]
    confidence: float


@dataclass(frozen=True)
class Alignment:
    """The maps of N parts of a caption (words or phrases) over one image, on the CPU.

    Attributes:
        pixels: The image as the model saw it. Shape [3, H, W].
        caption: The caption.
        spans: The first and one past the last character of each part in the caption.
        maps: For each source (`align`, `cosine`, `dot`), one map per part; higher values mean a closer match. Shape
            [N, P].
        grid: The number of rows and columns of a map.
        masks: True for the visible pixels of each part's object; None if they are unknown. Shape [N, H, W].
        photo: The original image; None if the model saw all of it in its own shape.
        tokens: The number of tokens in each part, which is its weight in the map of several parts; 0 for parts that the
            tokenizer truncated. None means one token per part.
        content: True for content words, False for other parts such as function words. The map of a phrase ignores the
            latter if it has content words. None means that all parts are content words.
        unknown: True for parts with a token that stands for anything that the tokenizer does not know, so that the map
            is not that of the part's own word. None means that the tokenizer knows all parts.
        score: The model's score of the image and the caption; None if it is unknown.
        measure: The quantity in the maps of `align`: `value`, or a name such as `weight` or `interaction`.
        pruned: Whether zeros in the maps of `align` are patches that the model has removed.
        regions: The regions that the model proposes, most confident first.
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
    unknown: list[bool] | None = None
    score: float | None = None
    measure: str = "value"
    pruned: bool = False
    regions: list[Region] = field(default_factory=list)

    @property
    def words(self) -> list[str]:
        """The N parts of the caption as strings."""
        return [self.caption[start:end] for start, end in self.spans]

    def save(self, path: Path) -> None:
        """Write a compressed `.npz` file, and create its folder if needed.

        If writing fails, an existing file remains unchanged.

        Raises:
            UserError: If the file cannot be written.
        """
        from patchword.maps.alignment_file import save

        save(self, path)

    @classmethod
    def load(cls, path: Path) -> Alignment:
        """Read a file from `save`. Every type, shape and size is checked, because the file may come from anyone.

        Raises:
            UserError: If the file is missing or invalid; the message states the reason.
        """
        from patchword.maps.alignment_file import load

        return load(path)
