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
    "ipos2t": "in which the image of COCO scores strictly higher with its caption than with the wrong one",
    "ineg2t": "in which the generated image scores strictly higher with its caption, the wrong one, than with COCO's",
    "tpos2i": "in which COCO's caption scores strictly higher with its image than with the generated one",
    "tneg2i": "in which the wrong caption scores strictly higher with the image generated for it than with COCO's",
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
    (ipos2t, ineg2t), (tpos2i, tneg2i) = answers.by_image.unbind(-1), answers.by_caption.unbind(-1)
    found = {
        "i2t": share(answers.caption),
        "t2i": share(answers.image),
        "group": share(answers.both),
        "ipos2t": share(ipos2t),
        "ineg2t": share(ineg2t),
        "tpos2i": share(tpos2i),
        "tneg2i": share(tneg2i),
        "chance_i2t": CHANCE_OF_TWO["caption"],
        "chance_t2i": CHANCE_OF_TWO["image"],
        "chance_group": CHANCE_OF_TWO["both"],
        **dict.fromkeys(("chance_ipos2t", "chance_ineg2t", "chance_tpos2i", "chance_tneg2i"), 1 / 2),
        "questions": float(len(answers)),
    }
    return {f"{prefix}{name}": value for name, value in found.items()}
