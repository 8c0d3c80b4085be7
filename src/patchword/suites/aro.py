"""ARO's VG-Relation and VG-Attribution: who does what, and which object has which attribute?"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from patchword.errors import InputError
from patchword.metrics.compositional import Answers, mean_over_groups, share
from patchword.suites.files import field, named_inside, read_json, require_file
from patchword.suites.matching import MatchingSuite, Question
from patchword.suites.pictures import PictureFile
from patchword.suites.prompts import read_lines

_LEAST = 25  # cases of a pair of attributes, as the authors' code has it
_WINS = "the caption scores strictly higher with its region of the image than the one with"


class RegionSuite(MatchingSuite):
    """Cases of a region of an image with its caption and a wrong one; see `Suite` for the options.

    Attributes:
        file: The published list of cases.
    """

    file: ClassVar[str]

    @abstractmethod
    def group(self, case: Any, place: str) -> str:
        """What the accuracies of cases are averaged by."""

    def questions(self) -> list[Question]:
        """See `MatchingSuite.questions`."""
        path = require_file(self.root, self.file, "of ARO")
        cases = read_json(path)
        if not isinstance(cases, list):
            raise InputError(f"{path} must hold a list of cases, not {type(cases).__name__}: is it the published file?")
        found = []
        for number, case in enumerate(cases):
            place = f"{path}, [{number}]"
            file = named_inside(self.root, f"images/{field(case, 'image_path', str, place)}", place)
            left, top, width, height = (field(case, f"bbox_{side}", int, place) for side in "xywh")
            picture = PictureFile(file, place, (left, top, left + width, top + height))
            captions = tuple(field(case, name, str, place) for name in ("true_caption", "false_caption"))
            found.append(Question(number, self.group(case, place), (picture,), captions))
        return found


class VGRelation(RegionSuite):
    """VG-Relation of ARO (Yuksekgonul et al., ICLR 2023, arXiv 2210.01936): does the horse eat the grass, or reversed?

    The region of the image that holds the relation is cut out, and becomes a square as `fit` says.

    Args:
        root: The folder with `visual_genome_relation.json` and `images/`.
    """

    data_set = "ARO VG-Relation"
    key = "aro_vg_relation"
    file = "visual_genome_relation.json"
    definitions: ClassVar[dict[str, str]] = {
        "accuracy": f"Share of cases in which {_WINS} the two objects swapped.",
        "macro_accuracy": "Mean over relations of their accuracies, without those that the authors leave out of their "
        "mean (symmetric ones and many with few cases; patchword/suites/vg_relation_left_out.txt).",
    }

    def group(self, case: Any, place: str) -> str:
        """The relation."""
        return str(field(case, "relation_name", str, place))

    def numbers(self, answers: Answers) -> dict[str, float]:
        """See `MatchingSuite.numbers`."""
        left_out = {relation for _, relation in read_lines(Path(__file__).parent / "vg_relation_left_out.txt")}
        counted = [name not in left_out for name in self.groups]
        own = answers[answers.group.new_tensor(counted).bool()[answers.group]]
        macro, relations = mean_over_groups(own, own.caption)
        return _accuracies(answers, macro) | {"relations": float(relations)}


class VGAttribution(RegionSuite):
    """VG-Attribution of ARO (Yuksekgonul et al., ICLR 2023, arXiv 2210.01936): which object has which attribute?

    The region of the image that holds both objects is cut out, and becomes a square as `fit` says.

    Args:
        root: The folder with `visual_genome_attribution.json` and `images/`.
    """

    data_set = "ARO VG-Attribution"
    key = "aro_vg_attribution"
    file = "visual_genome_attribution.json"
    definitions: ClassVar[dict[str, str]] = {
        "accuracy": f"Share of cases in which {_WINS} the two attributes swapped.",
        "macro_accuracy": f"Mean over pairs of attributes, in their order, with {_LEAST} cases or more, of their "
        "accuracies.",
    }

    def group(self, case: Any, place: str) -> str:
        """The two attributes, in their order."""
        return "_".join(map(str, field(case, "attributes", list, place)))

    def numbers(self, answers: Answers) -> dict[str, float]:
        """See `MatchingSuite.numbers`."""
        macro, pairs = mean_over_groups(answers, answers.caption, _LEAST)
        return _accuracies(answers, macro) | {"attribute_pairs": float(pairs)}


def _accuracies(answers: Answers, macro: float) -> dict[str, float]:
    found = {"accuracy": share(answers.caption), "macro_accuracy": macro}
    return {**found, "chance_accuracy": 1 / 2, "chance_macro_accuracy": 1 / 2}
