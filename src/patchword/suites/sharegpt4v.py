"""Retrieval with long captions on ShareGPT4V's images of SA-1B."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from patchword.errors import UserError
from patchword.files.published import field, named_inside, read_json, require_file
from patchword.suites.captioned import Captioned
from patchword.suites.pictures import PictureFile
from patchword.suites.retrieval import RetrievalSuite

FILES = ("share4v_sam_10k.json", "share-captioner_coco_lcs_sam_1246k_1107.json")
NUMBERS = {"1k": 1_000, "10k": 10_000}


class ShareGPT4VRetrieval(RetrievalSuite):
    """Retrieval on ShareGPT4V (Chen et al., ECCV 2024, arXiv 2311.12793): one generated caption per image.

    The captions are those that a model wrote for the first images of the list, as in the evaluations of Long-CLIP,
    FLAIR and FG-CLIP. Models that were trained on ShareGPT4V have seen them unless these images were left out.

    Args:
        root: The folder with ShareGPT4V's `share-captioner_coco_lcs_sam_1246k_1107.json`, or with FLAIR's
            `share4v_sam_10k.json`, its first 10,000 entries; and with the images of SA-1B in `sam/images/`, in
            `sam/`, in the folders of SA-1B's archives that the list names, or in the folder itself.
        split: The number of images: the first 1,000 (`1k`) or 10,000 (`10k`) of the list.
        options: Options of all suites; see `Suite`.
    """

    def __init__(self, root: str, split: Literal["1k", "10k"] = "1k", **options: Any) -> None:
        super().__init__(root, **options)
        self.split = split
        self.data_set = f"ShareGPT4V, first {split}"  # type: ignore[misc]

    @property
    def key(self) -> str:
        """`sharegpt4v_1k` or `sharegpt4v_10k`."""
        return f"sharegpt4v_{self.split}"

    def records(self) -> list[Captioned]:
        """See `CaptionedSuite.records`."""
        number = NUMBERS[self.split]
        path = next((self.root / name for name in FILES if (self.root / name).is_file()), None)
        path = require_file(self.root, FILES[1], "of ShareGPT4V") if path is None else path
        entries, images = read_json(path), self.image_folder(".")
        if not isinstance(entries, list) or len(entries) < number:
            raise UserError(f"{path} must be a list of {number} or more entries: use the published file")
        found = []
        for i, entry in enumerate(entries[:number]):
            place = f"{path}, [{i}]"
            turns = field(entry, "conversations", list, place)
            if len(turns) < 2:
                raise UserError(f"{place}: conversations must have a question and a caption: use the published file")
            text = field(turns[1], "value", str, f"{place}, conversations[1]")
            picture = PictureFile(_image(images, field(entry, "image", str, place), place), place)
            found.append(Captioned(i, (picture,), (text,)))
        return found


def _image(images: Path, name: str, place: str) -> Path:
    published = named_inside(images, name, place)
    kept = (published, images / name.replace("/images", ""), images / published.name)
    return next((path for path in kept if path.is_file()), published)
