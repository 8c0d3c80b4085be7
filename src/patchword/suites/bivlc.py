"""BiVLC: SugarCrepe's negative captions, each with an image that was generated for it."""

from __future__ import annotations

from typing import Any, ClassVar

from patchword.files.published import field
from patchword.metrics.compositional import CHANCE_OF_TWO, Answers, share
from patchword.suites.captioned import Captioned
from patchword.suites.matching import MatchingSuite, counts
from patchword.suites.parquet import rows

_KINDS = ("add", "replace", "swap")
_NUMBERS = {
    "i2t": "in which both images score strictly higher with their own caption than with the other one; chance is 1/4",
    "t2i": "in which both captions score strictly higher with their own image than with the other one; chance is 1/4",
    "group": "that are right for both i2t and t2i; chance is 1/6: the two right pairs must have the two top scores",
    "ipos2t": "in which COCO's image scores strictly higher with its own caption than with the negative caption",
    "ineg2t": "in which the generated image scores strictly higher with the negative caption than with COCO's caption",
    "tpos2i": "in which COCO's caption scores strictly higher with COCO's image than with the generated image",
    "tneg2i": "in which the negative caption scores strictly higher with the generated image than with COCO's image",
}


class BiVLC(MatchingSuite):
    """BiVLC (Miranda et al., NeurIPS 2024, arXiv 2406.09952): 2,933 questions of two images and two captions.

    A question has an image of COCO with its caption, and a negative caption, which differs in one detail, with an image
    that was generated for it.

    Args:
        root: The folder with the Parquet files of the split `test`.
        options: Options of all suites except `images`; see `Suite`.
    """

    data_set = "BiVLC"
    key = "bivlc"
    definitions: ClassVar[dict[str, str]] = {
        **{name: f"Share of questions {text}." for name, text in _NUMBERS.items()},
        **{f"{k}/{name}": f"Share of {k} questions {text}." for k in _KINDS for name, text in _NUMBERS.items()},
    }

    def __init__(self, root: str, **options: Any) -> None:
        super().__init__(root, images=None, **options)  # the images are in the Parquet files

    def records(self) -> list[Captioned]:
        """See `CaptionedSuite.records`."""
        found: list[Captioned] = []
        for row in rows(self.root, ("caption", "negative_caption", "type"), ("image", "negative_image")):
            captions = tuple(field(row.values, name, str, row.place) for name in ("caption", "negative_caption"))
            pictures = (row.picture("image"), row.picture("negative_image"))
            found.append(Captioned(len(found), pictures, captions, field(row.values, "type", str, row.place)))
        return found

    def numbers(self, answers: Answers) -> dict[str, float]:
        """See `MatchingSuite.numbers`. The metrics are also computed for each type of negatives."""
        found = _scores(answers, "")
        for kind, own in self.by_group(answers):
            found |= _scores(own, f"{kind}/")
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
    }
    return {f"{prefix}{name}": value for name, value in found.items()} | counts(answers, prefix)
