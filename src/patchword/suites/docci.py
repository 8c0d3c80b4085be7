"""Retrieval with long descriptions on DOCCI."""

from __future__ import annotations

from typing import Any, Literal

from patchword.errors import UserError
from patchword.files.published import field, named_inside, read_json_lines, require_file
from patchword.suites.captioned import Captioned
from patchword.suites.pictures import PictureFile
from patchword.suites.retrieval import RetrievalSuite
from patchword.suites.sentences import sentences


class DocciRetrieval(RetrievalSuite):
    """Retrieval on DOCCI (Onoe et al., ECCV 2024, arXiv 2404.19753): one description of about 136 words per image.

    `cut_captions` counts the descriptions that the tokenizer truncates: a model with 77 tokens reads only their
    beginning.

    Args:
        root: The folder with `docci_descriptions.jsonlines` and `images/`.
        split: The split of the data set; `test` has 5,000 images.
        captions: `long` is one description per image. `sentences` are the sentences of `test`'s descriptions, which
            FLAIR publishes for fine-grained retrieval as `annotations/test_annotations.json`; each is a caption.
        options: Options of all suites; see `Suite`.

    Raises:
        UserError: If sentences are asked for that are not published.
    """

    data_set = "DOCCI"

    def __init__(
        self,
        root: str,
        split: Literal["test", "qual_dev", "qual_test", "train"] = "test",
        captions: Literal["long", "sentences"] = "long",
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        if captions == "sentences" and split != "test":
            raise UserError(f"data.captions sentences are published for data.split test only, not {split}")
        self.split = split
        self.captions = captions

    @property
    def key(self) -> str:
        """`docci_` and the split, such as `docci_test`; with `_sentences` for sentences."""
        return f"docci_{self.split}" + ("_sentences" if self.captions == "sentences" else "")

    def records(self) -> list[Captioned]:
        """See `CaptionedSuite.records`."""
        if self.captions == "sentences":
            path = require_file(self.root, "annotations/test_annotations.json", "of FLAIR's datasets/docci")
            return sentences(path, self.image_folder("images"))
        path = require_file(self.root, "docci_descriptions.jsonlines", "of DOCCI's downloads")
        images, found = self.image_folder("images"), []
        for line, record in read_json_lines(path):
            place = f"{path}, line {line}"
            if field(record, "split", str, place) == self.split:
                file = named_inside(images, field(record, "image_file", str, place), place)
                text = field(record, "description", str, place)
                found.append(Captioned(line - 1, (PictureFile(file, place),), (text,)))
        if not found:
            raise UserError(f"{path}: no description has the split {self.split!r}: use the published file")
        return found
