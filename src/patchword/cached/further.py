"""What some objectives need of a caption besides its words: its hard negatives, and the regions of its phrases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from patchword.cached.rows import Rows, pack_rows, pack_texts, starts


@dataclass
class Further:
    """The hard negatives and the regions of a caption. The parts that an objective does not need are empty.

    Attributes:
        boxes: Left, top, right, bottom of the box of each phrase in pixels; zeros if unknown.
        negatives: The hard negatives.
        negative_words: The text tower's token features of each hard negative, without padding.
        region_words: The token features of each phrase with a box, encoded alone, without padding.
    """

    boxes: Float[Tensor, "_ 4"]
    negatives: list[str]
    negative_words: list[Float[Tensor, "_ W"]]
    region_words: list[Float[Tensor, "_ W"]]


def pack_further(further: Sequence[Further]) -> dict[str, Tensor]:
    """One concatenated tensor per kind of data."""
    return {
        **pack_rows("boxes", [one.boxes for one in further]),
        "negatives": starts(len(one.negatives) for one in further),
        **pack_texts("negative_letters", [text for one in further for text in one.negatives]),
        **pack_rows("negative_words", [words for one in further for words in one.negative_words]),
        "regions": starts(len(one.region_words) for one in further),
        **pack_rows("region_words", [words for one in further for words in one.region_words]),
    }


class PackedFurther:
    """What `pack_further` has packed.

    Args:
        tensors: The tensors, which can be mapped into memory.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.boxes = Rows(tensors, "boxes")
        self.letters = Rows(tensors, "negative_letters")
        self.negative_words = Rows(tensors, "negative_words")
        self.region_words = Rows(tensors, "region_words")
        self.negatives, self.regions = tensors["negatives"].numpy(), tensors["regions"].numpy()

    def __getitem__(self, caption: int) -> Further:
        """Returns what belongs to a caption."""
        negatives = range(*self.negatives[caption : caption + 2].tolist())
        regions = range(*self.regions[caption : caption + 2].tolist())
        return Further(
            boxes=self.boxes[caption],
            negatives=[self.letters.text(n) for n in negatives],
            negative_words=[self.negative_words[n] for n in negatives],
            region_words=[self.region_words[n] for n in regions],
        )
