"""SugarCrepe: hard negative captions that are fluent and plausible."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from patchword.errors import InputError
from patchword.metrics.compositional import Answers, share
from patchword.suites.files import field, named_inside, read_json, require_file
from patchword.suites.matching import MatchingSuite, Question
from patchword.suites.pictures import PictureFile

CATEGORIES = ("add_obj", "add_att", "replace_obj", "replace_att", "replace_rel", "swap_obj", "swap_att")
_WINS = "images whose caption scores strictly higher than the negative caption"


class SugarCrepe(MatchingSuite):
    """SugarCrepe (Hsieh et al., NeurIPS 2023, arXiv 2306.14610): the caption of a COCO image, or a wrong one?

    Args:
        root: The folder with the seven files, from `add_att.json` to `swap_obj.json`.
        images: The folder with the images of COCO's `val2017`; null for `val2017/` in `root`.
        options: What every suite takes; see `Suite`.
    """

    data_set = "SugarCrepe"
    key = "sugarcrepe"
    definitions: ClassVar[dict[str, str]] = {
        **{f"{name}/accuracy": f"Share of {name}'s {_WINS}." for name in CATEGORIES},
        **{
            f"{kind}/accuracy": f"Mean of the accuracies of {', '.join(n for n in CATEGORIES if n.startswith(kind))}."
            for kind in ("add", "replace", "swap")
        },
        "mean/accuracy": "Mean of the accuracies of the seven categories.",
    }

    def __init__(self, root: str, images: str | None = None, **options: Any) -> None:
        super().__init__(root, **options)
        self.images = self.root / "val2017" if images is None else Path(images)

    def questions(self) -> list[Question]:
        """See `MatchingSuite.questions`; ids count through all seven files."""
        found: list[Question] = []
        for category in CATEGORIES:
            path = require_file(self.root, f"{category}.json", "of SugarCrepe's data")
            records = read_json(path)
            if not isinstance(records, dict) or not records:
                raise InputError(f"{path} must hold an object with numbers as its keys: is it the published file?")
            for key, record in records.items():
                place = f"{path}, {key!r}"
                file = named_inside(self.images, field(record, "filename", str, place), place)
                captions = tuple(field(record, name, str, place) for name in ("caption", "negative_caption"))
                found.append(Question(len(found), category, (PictureFile(file, place),), captions))
        return found

    def numbers(self, answers: Answers) -> dict[str, float]:
        """See `MatchingSuite.numbers`."""
        found = {}
        accuracy: dict[str, float] = {}
        for number, category in enumerate(self.groups):
            own = answers[answers.group == number]
            accuracy[category] = share(own.caption)
            found[f"{category}/questions"] = float(len(own))
        for kind in ("add", "replace", "swap"):
            accuracy[kind] = _mean([accuracy[name] for name in CATEGORIES if name.startswith(kind)])
        accuracy["mean"] = _mean([accuracy[name] for name in CATEGORIES])
        for name, value in accuracy.items():
            found |= {f"{name}/accuracy": value, f"{name}/chance_accuracy": 1 / 2}
        return found


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
