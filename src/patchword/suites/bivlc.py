"""BiVLC: SugarCrepe's negative captions with images of their own."""

from __future__ import annotations

from typing import ClassVar

from patchword.metrics.compositional import CHANCE_OF_TWO, Answers, share
from patchword.suites.files import field
from patchword.suites.matching import MatchingSuite, Question
from patchword.suites.parquet import rows

_KINDS = ("add", "replace", "swap")
_NUMBERS = {
    "i2t": "in which both images score strictly higher with their own caption than with the other; a guess gets 1/4",
    "t2i": "in which both captions score strictly higher with their own image than with the other; a guess gets 1/4",
    "group": "with both i2t and t2i; a guess gets 1/6: the two right pairs must have the two highest of four scores",
}


class BiVLC(MatchingSuite):
    """BiVLC (Miranda et al., NeurIPS 2024, arXiv 2406.09952): 2,933 questions of two images and two captions.

    An image of COCO and its caption stand against a caption that is wrong in a detail and an image that was generated
    for it.

    Args:
        root: The folder with the Parquet files of the split `test`.
    """

    data_set = "BiVLC"
    key = "bivlc"
    definitions: ClassVar[dict[str, str]] = {
        **{name: f"Share of questions {text}." for name, text in _NUMBERS.items()},
        **{f"{k}/{name}": f"Share of {k} questions {text}." for k in _KINDS for name, text in _NUMBERS.items()},
    }

    def questions(self) -> list[Question]:
        """See `MatchingSuite.questions`."""
        found: list[Question] = []
        for row in rows(self.root, ("caption", "negative_caption", "type"), ("image", "negative_image")):
            captions = tuple(field(row.values, name, str, row.place) for name in ("caption", "negative_caption"))
            kind = field(row.values, "type", str, row.place)
            found.append(Question(len(found), kind, (row.picture("image"), row.picture("negative_image")), captions))
        return found

    def numbers(self, answers: Answers) -> dict[str, float]:
        """See `MatchingSuite.numbers`; for each type of negatives, too."""
        found = _scores(answers, "")
        for number, kind in enumerate(self.groups):
            found |= _scores(answers[answers.group == number], f"{kind}/")
        return found


def _scores(answers: Answers, prefix: str) -> dict[str, float]:
    return {
        f"{prefix}i2t": share(answers.caption),
        f"{prefix}t2i": share(answers.image),
        f"{prefix}group": share(answers.both),
        f"{prefix}chance_i2t": CHANCE_OF_TWO["caption"],
        f"{prefix}chance_t2i": CHANCE_OF_TWO["image"],
        f"{prefix}chance_group": CHANCE_OF_TWO["both"],
        f"{prefix}questions": float(len(answers)),
    }
