"""SugarCrepe++: two captions of an image in different words, and a wrong caption."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from patchword.errors import UserError
from patchword.files.published import field, named_inside, read_json, require_file
from patchword.metrics.compositional import share
from patchword.metrics.per_sample import PerSample
from patchword.metrics.ties import beats, ties
from patchword.ops import cosine
from patchword.suites.base import SuiteEvaluation
from patchword.suites.captioned import Captioned, CaptionedBatch, CaptionedSuite
from patchword.suites.pictures import PictureFile

if TYPE_CHECKING:
    from patchword.module import AlignmentModule

CATEGORIES = ("swap_obj", "swap_att", "replace_obj", "replace_att", "replace_rel")
_CHANCE = {"itt": 1 / 3, "itt_caption": 1 / 2, "itt_caption2": 1 / 2, "tot": 1 / 3}
_RIGHT = {
    "itt": "whose two captions both score strictly higher with the image than the negative caption; chance is 1/3: the "
    "negative caption must have the lowest of three scores",
    "itt_caption": "whose first caption scores strictly higher with the image than the negative caption",
    "itt_caption2": "whose second caption scores strictly higher with the image than the negative caption",
    "tot": "whose two captions have a strictly higher cosine with each other than each has with the negative caption, "
    "by pooled embeddings and without the image; chance is 1/3: theirs must be the highest of three cosines",
}


class SugarCrepePP(CaptionedSuite):
    """SugarCrepe++ (Dumpala et al., NeurIPS 2024, arXiv 2406.11171): same meaning, other words; other meaning.

    A COCO image has a caption, a second caption with the same meaning in other words, and a negative caption in similar
    words. ITT and TOT are the authors' image-text task and text-only task.

    Args:
        root: The folder with the five files, from `swap_obj.json` to `replace_rel.json`, and COCO's `val2017/`.
    """

    data_set = "SugarCrepe++"
    key = "sugarcrepe_pp"
    definitions: ClassVar[dict[str, str]] = {
        **{
            f"{name}/{task}": f"Share of the {name} questions {_RIGHT[task]}." for name in CATEGORIES for task in _RIGHT
        },
        **{f"mean/{task}": f"Mean of the five categories' {task}." for task in _RIGHT},
    }

    def records(self) -> list[Captioned]:
        """See `CaptionedSuite.records`. The ids count the questions of all five files."""
        images = self.image_folder("val2017")
        found: list[Captioned] = []
        for category in CATEGORIES:
            path = require_file(self.root, f"{category}.json", "of SugarCrepe++'s data")
            records = read_json(path)
            if not isinstance(records, list) or not records:
                raise UserError(f"{path} must be a JSON list of questions: use the file of SugarCrepe++")
            for number, record in enumerate(records):
                place = f"{path}, [{number}]"
                file = named_inside(images, field(record, "filename", str, place), place)
                names = ("caption", "caption2", "negative_caption")
                captions = tuple(field(record, name, str, place) for name in names)
                found.append(Captioned(len(found), (PictureFile(file, place),), captions, category))
        return found

    def evaluation(self, module: AlignmentModule) -> SuiteEvaluation:
        """Return an empty evaluation of both tasks."""
        return SugarCrepePPEvaluation(module)


class SugarCrepePPEvaluation(SuiteEvaluation):
    """Collects, for each question, the answers of both tasks and their ties."""

    def __init__(self, module: AlignmentModule) -> None:
        super().__init__()
        self.encode_texts, self.encode_images = module.encode_texts, module.encode_images
        self.objective = module.objective
        self.rows = PerSample(6)

    def update(self, batch: CaptionedBatch) -> None:
        """Add a batch."""
        images, (texts, _) = self.encode_images(batch.images), self.encode_texts(batch.captions)
        category = torch.tensor([CATEGORIES.index(group) for group in batch.groups], device=batch.ids.device)
        scores, cosines = [], []
        for number in range(len(batch)):
            own = texts[slice(3 * number, 3 * number + 3)]
            scores.append(self.objective.score(images[slice(number, number + 1)], own)[0].float())
            cosines.append(cosine(own.pooled.float(), own.pooled.float()))
        first, second, negative = torch.stack(scores).unbind(-1)
        table = torch.stack(cosines)
        each = (beats(first, negative), beats(second, negative))
        same, wrong = table[:, 0, 1], (table[:, 0, 2], table[:, 1, 2])
        alone = beats(same, wrong[0]) & beats(same, wrong[1])
        tied = ties(first, negative) | ties(second, negative), ties(same, wrong[0]) | ties(same, wrong[1])
        self.rows.update(batch.ids, torch.stack([x.double() for x in (category, *each, alone, *tied)], -1))

    def compute(self) -> dict[str, float]:
        """The accuracies with their chance levels, and the numbers of questions and of ties."""
        rows = self.rows.compute()
        found, accuracies = _counts(rows, ""), []
        for number, name in enumerate(CATEGORIES):
            own = rows[rows[:, 0] == number]
            accuracies.append(dict(_accuracies(own[:, 1:4].bool())))
            found |= _counts(own, f"{name}/") | _with_chance(accuracies[-1], name)
        means = {task: sum(of[task] for of in accuracies) / len(CATEGORIES) for task in _CHANCE}
        return found | _with_chance(means, "mean")


def _accuracies(right: Bool[Tensor, "N 3"]) -> Iterator[tuple[str, float]]:
    yield "itt", share(right[:, :2].all(-1))
    yield from zip(("itt_caption", "itt_caption2", "tot"), map(share, right.unbind(-1)), strict=True)


def _with_chance(accuracies: dict[str, float], name: str) -> dict[str, float]:
    chance = {f"{name}/chance_{task}": value for task, value in _CHANCE.items()}
    return {f"{name}/{task}": value for task, value in accuracies.items()} | chance


def _counts(rows: Float[Tensor, "N 6"], prefix: str) -> dict[str, float]:
    ties_of_images, ties_of_texts = rows[:, 4:].sum(0).tolist()
    counts = {"questions": float(len(rows)), "ties": ties_of_images, "text_ties": ties_of_texts}
    return {f"{prefix}{name}": value for name, value in counts.items()}
