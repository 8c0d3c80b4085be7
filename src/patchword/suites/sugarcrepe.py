"""SugarCrepe: hard negative captions that are fluent and plausible."""

from __future__ import annotations

from statistics import fmean
from typing import ClassVar

from patchword.errors import UserError
from patchword.files.published import field, named_inside, read_json, require_file
from patchword.metrics.compositional import Answers, share
from patchword.suites.captioned import Captioned
from patchword.suites.matching import MatchingSuite, counts
from patchword.suites.pictures import PictureFile

CATEGORIES = ("add_obj", "add_att", "replace_obj", "replace_att", "replace_rel", "swap_obj", "swap_att")
_WINS = "images whose caption scores strictly higher than the negative caption"


class SugarCrepe(MatchingSuite):
    """SugarCrepe (Hsieh et al., NeurIPS 2023, arXiv 2306.14610): a COCO image with its caption and a wrong caption.

    Args:
        root: The folder with the seven files, from `add_att.json` to `swap_obj.json`, and COCO's `val2017/`.
    """

    data_set = "SugarCrepe"
    key = "sugarcrepe"
    definitions: ClassVar[dict[str, str]] = {
        **{f"{name}/accuracy": f"Share of the {name} {_WINS}." for name in CATEGORIES},
        **{
            f"{kind}/accuracy": f"Mean of the accuracies of {', '.join(n for n in CATEGORIES if n.startswith(kind))}."
            for kind in ("add", "replace", "swap")
        },
        "mean/accuracy": "Mean of the accuracies of the seven categories.",
    }

    def records(self) -> list[Captioned]:
        """See `CaptionedSuite.records`. The ids count the questions of all seven files."""
        images = self.image_folder("val2017")
        found: list[Captioned] = []
        for category in CATEGORIES:
            path = require_file(self.root, f"{category}.json", "of SugarCrepe's data")
            records = read_json(path)
            if not isinstance(records, dict) or not records:
                raise UserError(f"{path} must be a JSON object with numbers as keys: use the published file")
            for key, record in records.items():
                place = f"{path}, {key!r}"
                file = named_inside(images, field(record, "filename", str, place), place)
                captions = tuple(field(record, name, str, place) for name in ("caption", "negative_caption"))
                found.append(Captioned(len(found), (PictureFile(file, place),), captions, category))
        return found

    def numbers(self, answers: Answers) -> dict[str, float]:
        """See `MatchingSuite.numbers`."""
        found: dict[str, float] = {}
        accuracy: dict[str, float] = {}
        for category, own in self.by_group(answers):
            accuracy[category] = share(own.caption)
            found |= counts(own, f"{category}/")
        for kind in ("add", "replace", "swap"):
            accuracy[kind] = fmean(accuracy[name] for name in CATEGORIES if name.startswith(kind))
        accuracy["mean"] = fmean(accuracy[name] for name in CATEGORIES)
        for name, value in accuracy.items():
            found |= {f"{name}/accuracy": value, f"{name}/chance_accuracy": 1 / 2}
        return found
