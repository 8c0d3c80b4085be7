"""VALSE: captions and foils, which differ in one linguistic phenomenon."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from patchword.errors import UserError
from patchword.files.published import field, named_inside, read_json, require_file
from patchword.metrics.compositional import Answers, share
from patchword.suites.captioned import Captioned
from patchword.suites.karpathy import coco_image
from patchword.suites.matching import MatchingSuite, counts
from patchword.suites.pictures import PictureFile

PIECES = {
    "existence": "existence",
    "plurality": "plurals",
    "counting_balanced": "counting-hard",
    "counting_small_numbers": "counting-small-quant",
    "counting_adversarial": "counting-adversarial",
    "relations": "relations",
    "action_replacement": "action-replacement",
    "actant_swap": "actant-swap",
    "coreference_standard": "coreference-standard",
    "coreference_clean": "coreference-hard",
    "foil_it": "foil-it",
}
_LEAST = 2  # annotators of three who choose the caption and not the foil, for a valid foil


class VALSE(MatchingSuite):
    """VALSE (Parcalabescu et al., ACL 2022): a caption against a foil, for eleven pieces of six phenomena.

    Args:
        root: The folder with the eleven files of VALSE's `data/`, and the folders of the images: `visual7w/`,
            `val2017/`, `val2014/` and `train2014/` of COCO, `VisualDialog_val2018/`, and SWiG's `images_512/`.
        valid: Ask only the questions whose foil two or more of three annotators found valid, as the authors report;
            false asks all questions.
        options: Options of all suites; see `Suite`.
    """

    data_set = "VALSE"
    key = "valse"
    definitions: ClassVar[dict[str, str]] = {
        **{
            f"{name}/accuracy": f"Share of the {name} questions whose caption scores strictly higher with the image "
            "than the foil (the paper's pairwise ranking accuracy)."
            for name in PIECES
        },
        "mean/accuracy": "Mean of the accuracies of the eleven pieces.",
    }

    def __init__(self, root: str, valid: bool = True, **options: Any) -> None:
        super().__init__(root, **options)
        self.valid = valid

    def records(self) -> list[Captioned]:
        """See `CaptionedSuite.records`. The ids count the questions of all files, asked or not."""
        found: list[Captioned] = []
        first = 0
        for piece, name in PIECES.items():
            path = require_file(self.root, f"{name}.json", "of VALSE's data")
            records = read_json(path)
            if not isinstance(records, dict) or not records:
                raise UserError(f"{path} must be a JSON object of questions: use the published file")
            for number, (key, record) in enumerate(records.items(), start=first):
                place = f"{path}, {key!r}"
                votes = field(field(record, "mturk", dict, place), "caption", int, f"{place}, mturk")
                if self.valid and votes < _LEAST:
                    continue
                file = self._image(named_inside(self.root, field(record, "image_file", str, place), place).name)
                captions = tuple(field(record, text, str, place) for text in ("caption", "foil"))
                found.append(Captioned(number, (PictureFile(file, place),), captions, piece))
            first += len(records)
        return found

    def _image(self, name: str) -> Path:
        """The path of an image; its name says which data set it is from."""
        if name.startswith("COCO_"):
            return coco_image(self, name)
        if name.startswith("VisualDialog_"):
            return self.image_folder("VisualDialog_val2018") / name
        if name.startswith("v7w_"):
            return self.image_folder("visual7w", "visual7w/images") / name
        return self.image_folder("val2017" if Path(name).stem.isdigit() else "images_512") / name

    def numbers(self, answers: Answers) -> dict[str, float]:
        """See `MatchingSuite.numbers`."""
        found: dict[str, float] = {}
        accuracies = []
        for piece, own in self.by_group(answers):
            accuracies.append(share(own.caption))
            found |= {f"{piece}/accuracy": accuracies[-1], f"{piece}/chance_accuracy": 1 / 2} | counts(own, f"{piece}/")
        return found | {"mean/accuracy": sum(accuracies) / len(accuracies), "mean/chance_accuracy": 1 / 2}
