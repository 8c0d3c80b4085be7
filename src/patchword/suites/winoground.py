"""Winoground: two images and two captions that have the same words in different orders."""

from __future__ import annotations

from typing import ClassVar

from patchword.files.published import field, named_inside, read_json_lines
from patchword.metrics.compositional import CHANCE_OF_TWO, Answers, share
from patchword.suites.captioned import Captioned
from patchword.suites.matching import MatchingSuite
from patchword.suites.parquet import rows
from patchword.suites.pictures import PictureFile


class Winoground(MatchingSuite):
    """Winoground (Thrush et al., CVPR 2022, arXiv 2204.03162): 400 questions of two images and two captions.

    Args:
        root: The folder with `examples.jsonl` and `images/`, or with Parquet files.
    """

    data_set = "Winoground"
    key = "winoground"
    definitions: ClassVar[dict[str, str]] = {
        "text_score": "Share of questions in which both images score strictly higher with their own caption than with "
        "the other caption; chance is 1/2 * 1/2.",
        "image_score": "Share of questions in which both captions score strictly higher with their own image than with "
        "the other image; chance is 1/2 * 1/2.",
        "group_score": "Share of questions that are right for both text_score and image_score; chance is 2! 2! / 4!, "
        "because the two right pairs must have the two highest of four scores.",
    }

    def records(self) -> list[Captioned]:
        """See `CaptionedSuite.records`."""
        path = self.root / "examples.jsonl"
        if not path.is_file():
            return self._parquet()
        images, found = self.image_folder("images"), []
        for line, record in read_json_lines(path):
            place = f"{path}, line {line}"
            files = [named_inside(images, f"{field(record, f'image_{k}', str, place)}.png", place) for k in (0, 1)]
            captions = tuple(field(record, f"caption_{k}", str, place) for k in (0, 1))
            found.append(Captioned(line - 1, tuple(PictureFile(file, place) for file in files), captions))
        return found

    def _parquet(self) -> list[Captioned]:
        found: list[Captioned] = []
        for row in rows(self.root, ("caption_0", "caption_1"), ("image_0", "image_1")):
            captions = tuple(field(row.values, f"caption_{k}", str, row.place) for k in (0, 1))
            found.append(Captioned(len(found), (row.picture("image_0"), row.picture("image_1")), captions))
        return found

    def numbers(self, answers: Answers) -> dict[str, float]:
        """See `MatchingSuite.numbers`."""
        return {
            "text_score": share(answers.caption),
            "image_score": share(answers.image),
            "group_score": share(answers.both),
            "chance_text_score": CHANCE_OF_TWO["caption"],
            "chance_image_score": CHANCE_OF_TWO["image"],
            "chance_group_score": CHANCE_OF_TWO["both"],
        }
