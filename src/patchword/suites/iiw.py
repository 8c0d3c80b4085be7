"""Retrieval with long captions on IIW, ImageInWords."""

from __future__ import annotations

from typing import Any, Literal

from patchword.errors import UserError
from patchword.files.published import field, named_inside, read_json_lines, require_file
from patchword.suites.captioned import Captioned
from patchword.suites.pictures import PictureFile
from patchword.suites.retrieval import RetrievalSuite
from patchword.suites.sentences import sentences

_PARTS = {"DOCCI_Test": "docci", "IIW-400": "docci_aar", "DCI_Test": "dci"}  # file and image folder of each


class IIWRetrieval(RetrievalSuite):
    """Retrieval on IIW (Garg et al., EMNLP 2024, arXiv 2405.02793): 612 images with captions of people.

    The images are those of IIW-400 (400, of DOCCI's additional images) and of its parts of DOCCI's and DCI's test
    splits (100 and 112), as in FLAIR's evaluation.

    Args:
        root: The folder with `IIW-400/data.jsonl`, `DOCCI_Test/data.jsonl` and `DCI_Test/data.jsonl`, and the images in
            `docci_aar/`, `docci/` and `dci/`.
        captions: `long` is one caption per image. `sentences` are its sentences, which FLAIR publishes for fine-grained
            retrieval as `test_annotations.json`; each is a caption of the image.
        options: Options of all suites; see `Suite`.
    """

    data_set = "IIW (IIW-400 and its parts of DOCCI and DCI)"

    def __init__(self, root: str, captions: Literal["long", "sentences"] = "long", **options: Any) -> None:
        super().__init__(root, **options)
        self.captions = captions

    @property
    def key(self) -> str:
        """`iiw_long` or `iiw_sentences`."""
        return f"iiw_{self.captions}"

    def records(self) -> list[Captioned]:
        """See `CaptionedSuite.records`. The ids count the images."""
        images = self.image_folder(".")
        if self.captions == "sentences":
            return sentences(
                require_file(self.root, "test_annotations.json", "of FLAIR's datasets/imageinwords"), images
            )
        found: list[Captioned] = []
        for part, folder in _PARTS.items():
            upper = f"{part.upper()}/data.jsonl"
            name = upper if (self.root / upper).is_file() else f"{part}/data.jsonl"
            path = require_file(self.root, name, "of github.com/google/imageinwords")
            lines = read_json_lines(path)
            if not lines:
                raise UserError(f"{path} is empty: use the published file")
            for line, record in lines:
                place = f"{path}, line {line}"
                key = field(record, "image" if "image" in record else "image/key", str, place)
                file = named_inside(images, f"{folder}/{key.removesuffix('.jpg')}.jpg", place)
                found.append(Captioned(len(found), (PictureFile(file, place),), (field(record, "IIW", str, place),)))
        return found
