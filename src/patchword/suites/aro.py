"""ARO's VG-Relation and VG-Attribution: who does what, and which object has which attribute?"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar, Literal

from patchword.errors import InputError
from patchword.metrics.compositional import Answers, mean_over_groups, share
from patchword.suites.files import field, inside, read_json, require_file
from patchword.suites.matching import MatchingSuite, Question
from patchword.suites.pictures import PictureFile

_LEAST = 25  # cases of a pair of attributes, as the authors' code has it
_WINS = "the caption scores strictly higher with its region of the image than the one with"


class VGRelation(MatchingSuite):
    """VG-Relation of ARO (Yuksekgonul et al., ICLR 2023, arXiv 2210.01936): does the horse eat the grass, or reversed?

    The region of the image that holds the relation is cut out, and becomes a square as `fit` says.

    Args:
        root: The folder with `visual_genome_relation.json` and `images/`.
        image_size: Height and width in pixels; null for what the encoder takes.
        fit: How an image becomes a square: `backbone` as the image tower was trained, `crop` its centre, `stretch` the
            whole image.
        batch_size: Samples per batch on each device.
        num_workers: Processes that read images; 0 reads them in the main process.
    """

    data_set = "ARO VG-Relation"
    key = "aro_vg_relation"
    definitions: ClassVar[dict[str, str]] = {
        "accuracy": f"Share of cases in which {_WINS} the two objects swapped.",
        "macro_accuracy": "Mean over relations of their accuracies, without those that the authors leave out of their "
        "mean (symmetric ones and many with few cases; patchword/suites/vg_relation_left_out.txt).",
    }

    def __init__(
        self,
        root: str,
        image_size: int | None = None,
        fit: Literal["backbone", "crop", "stretch"] = "backbone",
        batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        super().__init__(image_size, fit, batch_size, num_workers)
        self.root = Path(root)

    def questions(self) -> list[Question]:
        """See `MatchingSuite.questions`."""
        path = require_file(self.root, "visual_genome_relation.json", "of ARO")
        return [
            _question(self.root, number, case, field(case, "relation_name", str, place), place)
            for number, case, place in _cases(path)
        ]

    def numbers(self, answers: Answers) -> dict[str, float]:
        """See `MatchingSuite.numbers`."""
        left_out = set(files("patchword.suites").joinpath("vg_relation_left_out.txt").read_text("utf-8").splitlines())
        counted = [name not in left_out for name in self.groups]
        own = answers[answers.group.new_tensor(counted).bool()[answers.group]]
        macro, relations = mean_over_groups(own, own.caption)
        return _accuracies(answers, macro) | {"relations": float(relations)}


class VGAttribution(MatchingSuite):
    """VG-Attribution of ARO (Yuksekgonul et al., ICLR 2023, arXiv 2210.01936): which object has which attribute?

    The region of the image that holds both objects is cut out, and becomes a square as `fit` says.

    Args:
        root: The folder with `visual_genome_attribution.json` and `images/`.
        image_size: Height and width in pixels; null for what the encoder takes.
        fit: How an image becomes a square: `backbone` as the image tower was trained, `crop` its centre, `stretch` the
            whole image.
        batch_size: Samples per batch on each device.
        num_workers: Processes that read images; 0 reads them in the main process.
    """

    data_set = "ARO VG-Attribution"
    key = "aro_vg_attribution"
    definitions: ClassVar[dict[str, str]] = {
        "accuracy": f"Share of cases in which {_WINS} the two attributes swapped.",
        "macro_accuracy": f"Mean over pairs of attributes, in their order, with {_LEAST} cases or more, of their "
        "accuracies.",
    }

    def __init__(
        self,
        root: str,
        image_size: int | None = None,
        fit: Literal["backbone", "crop", "stretch"] = "backbone",
        batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        super().__init__(image_size, fit, batch_size, num_workers)
        self.root = Path(root)

    def questions(self) -> list[Question]:
        """See `MatchingSuite.questions`."""
        path = require_file(self.root, "visual_genome_attribution.json", "of ARO")
        found = []
        for number, case, place in _cases(path):
            attributes = "_".join(map(str, field(case, "attributes", list, place)))
            found.append(_question(self.root, number, case, attributes, place))
        return found

    def numbers(self, answers: Answers) -> dict[str, float]:
        """See `MatchingSuite.numbers`."""
        macro, pairs = mean_over_groups(answers, answers.caption, _LEAST)
        return _accuracies(answers, macro) | {"attribute_pairs": float(pairs)}


def _cases(path: Path) -> list[tuple[int, Any, str]]:
    cases = read_json(path)
    if not isinstance(cases, list):
        raise InputError(f"{path} must hold a list of cases, not {type(cases).__name__}: is it the published file?")
    return [(number, case, f"{path}, [{number}]") for number, case in enumerate(cases)]


def _question(root: Path, number: int, case: Any, group: str, place: str) -> Question:
    file = inside(root, f"images/{field(case, 'image_path', str, place)}", place)
    left, top, width, height = (field(case, f"bbox_{side}", int, place) for side in "xywh")
    picture = PictureFile(file, place, (left, top, left + width, top + height))
    captions = tuple(field(case, name, str, place) for name in ("true_caption", "false_caption"))
    return Question(number, group, (picture,), captions)


def _accuracies(answers: Answers, macro: float) -> dict[str, float]:
    found = {"accuracy": share(answers.caption), "macro_accuracy": macro}
    return {**found, "chance_accuracy": 1 / 2, "chance_macro_accuracy": 1 / 2}
