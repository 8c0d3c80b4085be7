"""ARO's VG-Relation and VG-Attribution: tests of relations between objects and of attributes of objects."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from patchword.errors import UserError
from patchword.files.published import field, named_inside, read_json, read_lines, require_file
from patchword.metrics.compositional import Answers, mean_over_groups, share
from patchword.suites.captioned import Captioned
from patchword.suites.matching import MatchingSuite
from patchword.suites.pictures import PictureFile

_LEAST = 25  # minimum number of cases of a pair of attributes, as in the authors' code
_WINS = "the true caption scores strictly higher with the region of the image than the caption with"


class RegionSuite(MatchingSuite):
    """A suite of cases: a region of an image, its caption and a wrong caption. See `Suite` for the options.

    Attributes:
        file: The name of the published list of cases.
    """

    file: ClassVar[str]

    @abstractmethod
    def group(self, case: Any, place: str) -> str:
        """The name of the group of a case; the macro accuracy is the mean over groups."""

    def records(self) -> list[Captioned]:
        """See `CaptionedSuite.records`."""
        path = require_file(self.root, self.file, "of ARO")
        cases = read_json(path)
        if not isinstance(cases, list):
            raise UserError(f"{path} must contain a list of cases, not {type(cases).__name__}: use the published file")
        images, found = self.image_folder("images"), []
        for number, case in enumerate(cases):
            place = f"{path}, [{number}]"
            file = named_inside(images, field(case, "image_path", str, place), place)
            left, top, width, height = (field(case, f"bbox_{side}", int, place) for side in "xywh")
            picture = PictureFile(file, place, (left, top, left + width, top + height))
            captions = tuple(field(case, name, str, place) for name in ("true_caption", "false_caption"))
            found.append(Captioned(number, (picture,), captions, self.group(case, place)))
        return found


class VGRelation(RegionSuite):
    """VG-Relation of ARO (Yuksekgonul et al., ICLR 2023, arXiv 2210.01936): does the horse eat the grass?

    The wrong caption swaps the two objects. The region of the image with both objects is cropped and resized to a
    square as `resize_mode` specifies.

    Args:
        root: The folder with `visual_genome_relation.json` and `images/`.
    """

    data_set = "ARO VG-Relation"
    key = "aro_vg_relation"
    file = "visual_genome_relation.json"
    definitions: ClassVar[dict[str, str]] = {
        "accuracy": f"Share of cases in which {_WINS} the two objects swapped.",
        "macro_accuracy": "Mean over relations of the accuracy of each relation. Relations that the authors exclude "
        "are left out (symmetric relations and many with few cases; patchword/suites/vg_relation_left_out.txt).",
    }

    def group(self, case: Any, place: str) -> str:
        """The name of the relation."""
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

    The wrong caption swaps the two attributes. The region of the image with both objects is cropped and resized to a
    square as `resize_mode` specifies.

    Args:
        root: The folder with `visual_genome_attribution.json` and `images/`.
    """

    data_set = "ARO VG-Attribution"
    key = "aro_vg_attribution"
    file = "visual_genome_attribution.json"
    definitions: ClassVar[dict[str, str]] = {
        "accuracy": f"Share of cases in which {_WINS} the two attributes swapped.",
        "macro_accuracy": f"Mean over ordered pairs of attributes of the accuracy of each pair. Pairs with fewer than "
        f"{_LEAST} cases are left out.",
    }

    def group(self, case: Any, place: str) -> str:
        """The names of the two attributes, in their order."""
        return "_".join(map(str, field(case, "attributes", list, place)))

    def numbers(self, answers: Answers) -> dict[str, float]:
        """See `MatchingSuite.numbers`."""
        macro, pairs = mean_over_groups(answers, answers.caption, _LEAST)
        return _accuracies(answers, macro) | {"attribute_pairs": float(pairs)}


def _accuracies(answers: Answers, macro: float) -> dict[str, float]:
    found = {"accuracy": share(answers.caption), "macro_accuracy": macro}
    return {**found, "chance_accuracy": 1 / 2, "chance_macro_accuracy": 1 / 2}
