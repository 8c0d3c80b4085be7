"""MMVP-VLM: pairs of images that have similar CLIP embeddings."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from typing import ClassVar

from patchword.errors import UserError
from patchword.files.published import named_inside, require_file
from patchword.metrics.compositional import CHANCE_OF_TWO, Answers, mean_over_groups, share
from patchword.suites.captioned import Captioned
from patchword.suites.matching import MatchingSuite, counts
from patchword.suites.pictures import PictureFile

_COLUMNS = ("Question ID", "Type", "Statement")
PATTERNS = (
    "orientation_and_direction",
    "presence_of_specific_features",
    "state_and_condition",
    "quantity_and_count",
    "positional_and_relational_context",
    "color_and_appearance",
    "structural_characteristics",
    "texts",
    "viewpoint_and_perspective",
)


def _definitions(patterns: Iterable[str]) -> dict[str, str]:
    right = (
        "both statements, as 'a photo of ...', score strictly higher with their own image than with the other image; "
        "chance is 1/2 * 1/2"
    )
    own = {f"{name}/pairs": f"Share of pairs of this pattern in which {right}." for name in patterns}
    return {**own, "mean/pairs": "Mean over patterns of the share of right pairs of each pattern."}


class MMVP(MatchingSuite):
    """MMVP-VLM (Tong et al., CVPR 2024, arXiv 2401.06209): 135 pairs of images and statements for nine visual patterns.

    Args:
        root: The folder with `Questions.csv` and `MLLM_VLM Images/`.
    """

    data_set = "MMVP-VLM"
    key = "mmvp"
    definitions: ClassVar[dict[str, str]] = _definitions(PATTERNS)

    def records(self) -> list[Captioned]:
        """See `CaptionedSuite.records`. Two consecutive rows of the table form one question."""
        path = require_file(self.root, "Questions.csv", "of MMVP_VLM")
        try:
            table = list(csv.reader(path.read_text(encoding="utf-8-sig").split("\n")))
        except (ValueError, csv.Error) as error:
            raise UserError(f"{path} is not a CSV file in UTF-8 ({error})") from error
        head, lines = tuple(table[0] if table else ()), [line for line in table[1:] if line]
        if head != _COLUMNS:
            raise UserError(
                f"{path} must have the columns {', '.join(_COLUMNS)}, not {', '.join(head)}: use the published file"
            )
        if any(len(line) != len(_COLUMNS) for line in lines) or len(lines) % 2:
            raise UserError(f"{path} must have three values per row and an even number of rows: use the published file")
        images, found = self.image_folder("MLLM_VLM Images"), []
        for k, pair in enumerate(zip(lines[::2], lines[1::2], strict=True)):
            (_, pattern, _), (_, other, _) = pair
            place = f"{path}, question {pair[0][0]}"
            if pattern != other:
                raise UserError(f"{place}: the pair has two types, {pattern!r} and {other!r}: use the published file")
            files = [named_inside(images, f"{pattern}/{number}.jpg", place) for number, _, _ in pair]
            name = re.sub(r"\W+", "_", pattern.strip().lower())  # for example color_and_appearance
            statements = tuple(f"a photo of {statement}" for _, _, statement in pair)
            found.append(Captioned(k, tuple(PictureFile(file, place) for file in files), statements, name))
        self.definitions = _definitions(dict.fromkeys(record.group for record in found))  # type: ignore[misc]
        return found

    def numbers(self, answers: Answers) -> dict[str, float]:
        """See `MatchingSuite.numbers`."""
        found: dict[str, float] = {}
        for pattern, own in self.by_group(answers):
            found |= {f"{pattern}/pairs": share(own.image), f"{pattern}/chance_pairs": CHANCE_OF_TWO["image"]}
            found |= counts(own, f"{pattern}/")
        mean, _ = mean_over_groups(answers, answers.image)
        return {**found, "mean/pairs": mean, "mean/chance_pairs": CHANCE_OF_TWO["image"]}
