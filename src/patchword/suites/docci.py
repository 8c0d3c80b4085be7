"""Retrieval with long descriptions on DOCCI."""

from __future__ import annotations

from typing import Any, Literal

from patchword.errors import UserError
from patchword.files.published import field, named_inside, read_json_lines, require_file
from patchword.suites.captioned import Captioned
from patchword.suites.pictures import PictureFile
from patchword.suites.retrieval import RetrievalSuite


class DocciRetrieval(RetrievalSuite):
    """Retrieval on DOCCI (Onoe et al., ECCV 2024, arXiv 2404.19753): one description of about 136 words per image.

    `cut_captions` counts the descriptions that the tokenizer truncates: a model with 77 tokens reads only their
    beginning.

    Args:
        root: The folder with `docci_descriptions.jsonlines` and `images/`.
        split: The split of the data set; `test` has 5,000 images.
        options: Options of all suites; see `Suite`.
    """

    data_set = "DOCCI"

    def __init__(
        self, root: str, split: Literal["test", "qual_dev", "qual_test", "train"] = "test", **options: Any
    ) -> None:
        super().__init__(root, **options)
        self.split = split

    @property
    def key(self) -> str:
        """`docci_` and the split, such as `docci_test`."""
        return f"docci_{self.split}"

    def records(self) -> list[Captioned]:
        """See `CaptionedSuite.records`."""
        path = require_file(self.root, "docci_descriptions.jsonlines", "of DOCCI's downloads")
        found = []
        for line, record in read_json_lines(path):
            place = f"{path}, line {line}"
            if field(record, "split", str, place) == self.split:
                file = named_inside(self.root, f"images/{field(record, 'image_file', str, place)}", place)
                text = field(record, "description", str, place)
                found.append(Captioned(line - 1, (PictureFile(file, place),), (text,)))
        if not found:
            raise UserError(f"{path}: no description has the split {self.split!r}: use the published file")
        return found
