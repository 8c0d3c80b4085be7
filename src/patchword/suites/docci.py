"""Retrieval by long descriptions on DOCCI."""

from __future__ import annotations

from typing import Any, Literal

from patchword.errors import InputError
from patchword.suites.files import field, named_inside, read_json_lines, require_file
from patchword.suites.pictures import PictureFile
from patchword.suites.retrieval import Captioned, RetrievalSuite


class DocciRetrieval(RetrievalSuite):
    """Retrieval on DOCCI (Onoe et al., ECCV 2024, arXiv 2404.19753): one description of some 136 words per image.

    Descriptions that the tokenizer cuts are counted as `cut_captions`: a model of 77 tokens reads the beginning only.

    Args:
        root: The folder with `docci_descriptions.jsonlines` and `images/`.
        split: `test` has 5,000 images.
        options: What every suite takes; see `Suite`.
    """

    data_set = "DOCCI"

    def __init__(
        self,
        root: str,
        split: Literal["test", "qual_dev", "qual_test", "train"] = "test",
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        self.split = split

    @property
    def key(self) -> str:
        """`docci_test` and so on."""
        return f"docci_{self.split}"

    def records(self) -> list[Captioned]:
        """See `RetrievalSuite.records`."""
        path = require_file(self.root, "docci_descriptions.jsonlines", "of DOCCI's downloads")
        found = []
        for line, record in read_json_lines(path):
            place = f"{path}, line {line}"
            if field(record, "split", str, place) == self.split:
                file = named_inside(self.root, f"images/{field(record, 'image_file', str, place)}", place)
                found.append(Captioned(line - 1, PictureFile(file, place), (field(record, "description", str, place),)))
        if not found:
            raise InputError(f"{path}: no description has the split {self.split!r}: is it the published file?")
        return found
