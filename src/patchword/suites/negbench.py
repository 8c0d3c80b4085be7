"""NegBench: do models understand captions that say what is not in an image?"""

from __future__ import annotations

import ast
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal

from patchword.errors import UserError
from patchword.files.published import named_inside, read_table, require_file
from patchword.metrics.compositional import Answers, chance_of_captions, share
from patchword.suites.base import Suite
from patchword.suites.captioned import Captioned
from patchword.suites.matching import MatchingSuite, counts
from patchword.suites.pictures import PictureFile
from patchword.suites.retrieval import RetrievalSuite

QUESTIONS = {
    "coco": "COCO_val_mcq_llama3.1_rephrased.csv",
    "voc2007": "VOC2007_mcq_llama3.1_rephrased.csv",
    "synthetic": "synthetic_mcq_llama3.1_rephrased.csv",
}
QUERIES = {
    "coco": "COCO_val_retrieval.csv",
    "coco_negated": "COCO_val_negated_retrieval_llama3.1_rephrased_affneg_true.csv",
    "synthetic_v1": "synthetic_retrieval_v1.csv",
    "synthetic_v2": "synthetic_retrieval_v2.csv",
}
_FOLDERS = {  # of the images, and the number of parts of an image's path that are kept
    "coco": (("val2017",), 1),
    "voc2007": (("JPEGImages", "VOCdevkit/VOC2007/JPEGImages"), 1),
    "synthetic": (("synthetic_visual_negation/data",), 2),
}
_TYPES = ("positive", "negative", "hybrid")
_CHOICES = tuple(f"caption_{number}" for number in range(4))


class NegBenchMCQ(MatchingSuite):
    """The multiple-choice questions of NegBench (Alhamoud et al., CVPR 2025, arXiv 2501.09425).

    An image has one right and three wrong captions. The right caption says what the image shows (`positive`), what it
    does not show (`negative`), or both (`hybrid`).

    Args:
        root: The folder with the authors' CSV files (also in `images/`, as the authors keep them), and the images:
            COCO's `val2017/`, VOC 2007's `JPEGImages/`, or `synthetic_visual_negation/data/`.
        subset: The images.
        options: Options of all suites; see `Suite`.
    """

    definitions: ClassVar[dict[str, str]] = {
        "accuracy": "Share of images that score strictly higher with their right caption than with each of three wrong "
        "captions.",
        **{
            f"{name}/accuracy": f"Share of the images with a {name} right caption that score strictly higher with it "
            "than with each of three wrong captions."
            for name in _TYPES
        },
    }

    def __init__(self, root: str, subset: Literal["coco", "voc2007", "synthetic"] = "coco", **options: Any) -> None:
        super().__init__(root, **options)
        self.subset = subset
        self.data_set = f"NegBench, multiple choice, {subset}"  # type: ignore[misc]

    @property
    def key(self) -> str:
        """`negbench_mcq_` and the subset, such as `negbench_mcq_coco`."""
        return f"negbench_mcq_{self.subset}"

    def records(self) -> list[Captioned]:
        """See `CaptionedSuite.records`. The right caption becomes the first."""
        path = _listed(self, QUESTIONS[self.subset])
        found: list[Any] = []
        for place, row in read_table(path, ("image_path", "correct_answer", "correct_answer_template", *_CHOICES)):
            answer, kind = row["correct_answer"], row["correct_answer_template"]
            if answer not in ("0", "1", "2", "3"):
                raise UserError(f"{place}: correct_answer must be from 0 to 3, not {answer!r}: use the published file")
            if kind not in _TYPES:
                raise UserError(f"{place}: correct_answer_template must be one of {', '.join(_TYPES)}, not {kind!r}")
            choices = [row[name] for name in _CHOICES]
            right = choices.pop(int(answer))
            picture = PictureFile(_image(self, self.subset, row["image_path"], place), place)
            found.append(Captioned(len(found), (picture,), (right, *choices), kind))
        return found

    def numbers(self, answers: Answers) -> dict[str, float]:
        """See `MatchingSuite.numbers`."""
        found = _accuracy(answers, "")
        for kind in _TYPES:
            number = self.groups.index(kind) if kind in self.groups else len(self.groups)
            own = answers[answers.group == number]
            found |= _accuracy(own, f"{kind}/") | counts(own, f"{kind}/")
        return found


def _accuracy(answers: Answers, prefix: str) -> dict[str, float]:
    return {
        f"{prefix}accuracy": share(answers.caption),
        f"{prefix}chance_accuracy": chance_of_captions(answers),
    }


class NegBenchRetrieval(RetrievalSuite):
    """The retrieval sets of NegBench (Alhamoud et al., CVPR 2025, arXiv 2501.09425).

    The captions of `coco_negated` are those of `coco` with one object added that the image does not show. The authors
    report the recall at 5.

    Args:
        root: The folder with the authors' CSV files (also in `images/`, as the authors keep them), and the images:
            COCO's `val2017/`, or `synthetic_visual_negation/data/`.
        subset: The images and captions; `synthetic_v2` also has the images without the second object.
        options: Options of all suites; see `Suite`.
    """

    def __init__(
        self,
        root: str,
        subset: Literal["coco", "coco_negated", "synthetic_v1", "synthetic_v2"] = "coco_negated",
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        self.subset = subset
        self.data_set = f"NegBench, retrieval, {subset}"  # type: ignore[misc]

    @property
    def key(self) -> str:
        """`negbench_retrieval_` and the subset, such as `negbench_retrieval_coco_negated`."""
        return f"negbench_retrieval_{self.subset}"

    def records(self) -> list[Captioned]:
        """See `CaptionedSuite.records`."""
        found: list[Any] = []
        for place, row in read_table(_listed(self, QUERIES[self.subset]), ("filepath", "captions")):
            picture = PictureFile(_image(self, self.subset.partition("_")[0], row["filepath"], place), place)
            found.append(Captioned(len(found), (picture,), _texts(row["captions"], place)))
        return found


def _listed(suite: Suite, name: str) -> Path:
    kept = suite.root / "images" / name
    return kept if kept.is_file() else require_file(suite.root, name, "of NegBench's evaluation data")


def _image(suite: Suite, subset: str, path: str, place: str) -> Path:
    """The path of an image, of which the authors' files have the path on their machine."""
    folders, parts = _FOLDERS[subset]
    name = PurePosixPath(*PurePosixPath(path).parts[-parts:])
    return named_inside(suite.image_folder(*folders), str(name), place)


def _texts(cell: str, place: str) -> tuple[str, ...]:
    """The captions of an image, which the authors' files have as a Python list."""
    try:
        texts = ast.literal_eval(cell)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        texts = None
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{place}: captions must be a list of texts, not {cell[:60]!r}: use the published file")
    return tuple(texts)
