"""Flickr30k Entities (Plummer et al., IJCV 2017, arXiv 1505.04870): phrases of captions, with boxes."""

from __future__ import annotations

from typing import Any, Literal

from patchword.data.published import entities
from patchword.errors import UserError
from patchword.files.published import read_lines, require_file
from patchword.suites.flickr30k import FOLDERS as FLICKR30K
from patchword.suites.grounding import GroundedImage, PhraseGrounding, Region


class Flickr30kEntities(PhraseGrounding):
    """Phrase grounding on Flickr30k Entities.

    Args:
        root: The folder with `Annotations`, `Sentences` and the lists `train.txt`, `val.txt`, `test.txt`.
        split: The list of images to use.
        options: Options of all grounding suites; see `PhraseGrounding`.
    """

    data_set = "Flickr30k Entities"
    groups = ("people", "clothing", "bodyparts", "animals", "vehicles", "instruments", "scene", "other")
    reported = {  # noqa: RUF012 - a ClassVar
        "pointing_game": (
            "pointing_game",
            "Share of phrases whose map, upsampled bilinearly, has its highest pixel in any box of the phrase.",
        ),
        "r@1_any": (
            "r@1_any",
            "Share of phrases whose predicted box has an IoU of 0.5 or more with any box of the phrase. The predicted "
            "box is the box around the largest component of the pixels at or above the midpoint of the map's range.",
        ),
        "r@1_merged": (
            "r@1_merged",
            "Share of phrases whose predicted box, as for r@1_any, has an IoU of 0.5 or more with the box around all "
            "boxes of the phrase.",
        ),
    }

    def __init__(
        self,
        root: str,
        split: Literal["train", "val", "test"] = "test",
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        self.split = split

    @property
    def key(self) -> str:
        """`flickr30k_entities_` and the split."""
        return f"flickr30k_entities_{self.split}"

    def images(self) -> list[GroundedImage]:
        """Read the sentences and boxes of every image of the split. Phrases without a box are counted and left out."""
        listed = require_file(self.root, f"{self.split}.txt", "of github.com/BryanPlummer/flickr30k_entities")
        found = []
        for number, name in read_lines(listed):
            if not name.isascii() or not name.isdigit():
                raise UserError(f"{listed}, line {number}: must be the number of an image, not {name!r}")
            found.append(self._image(name))
        return found

    def _image(self, name: str) -> GroundedImage:
        annotated = entities.read(self.root, name)
        regions = [Region(e.caption, e.start, e.end, e.boxes, e.types) for e in annotated.entities if e.boxes]
        unboxed = len(annotated.entities) - len(regions)
        path = self.image_folder(*FLICKR30K) / f"{name}.jpg"
        return GroundedImage(int(name), path, annotated.size, tuple(annotated.captions), tuple(regions), unboxed)
