"""Faithfulness of retrieved captions on COCO: K-Precision."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch.utils.data import Dataset

from patchword.metrics.k_precision import KPrecision
from patchword.suites.base import SuiteEvaluation
from patchword.suites.coco import CocoRetrieval
from patchword.suites.files import Framing
from patchword.suites.retrieval import (
    Captioned,
    CaptionedImages,
    RetrievalEvaluation,
    RetrievalSample,
    RetrievalSuite,
)
from patchword.suites.tagger import ADJECTIVES, NOUNS, tagged

if TYPE_CHECKING:
    from patchword.module import AlignmentModule

_IN_TRUTH = "that occur in any caption of the image itself (lower case, runs of letters and digits, repeats counted)"


class CocoFaithfulness(RetrievalSuite):
    """K-Precision on COCO, as SPARC (Bica et al., ICML 2024, arXiv 2401.09865, table 4) reports it.

    The paper leaves open how words are split and tagged, and whether the image's own captions can be retrieved. Here
    they can; words are runs of letters and digits in lower case; spaCy tags them.

    Args:
        root: The folder with `dataset_coco.json` and `val2014/`; for `val2017`, with `val2017/` and
            `annotations/captions_val2017.json`.
        split: `5k` is Karpathy's test split, `val2017` the validation set of 2017.
        captions_per_image: The first so many captions of an image; null takes all.
        tagger: The spaCy model that finds nouns and adjectives, such as `en_core_web_sm`; null measures all words only.
        options: What every suite takes; see `Suite`.
    """

    data_set = "COCO"
    definitions: ClassVar[dict[str, str]] = {
        "k_precision": "Of the words of the caption that scores highest with an image, among the captions of all "
        f"images, the share {_IN_TRUTH}; mean over images; chance is the mean over all captions.",
        "k_precision_na": "Of the nouns and adjectives (Penn tags NN*, JJ* by spaCy) of that caption, the share "
        f"{_IN_TRUTH}; mean over images whose retrieved caption has one; chance is the mean over all captions that do.",
    }

    def __init__(
        self,
        root: str,
        split: Literal["5k", "val2017"] = "5k",
        captions_per_image: int | None = 5,
        tagger: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        self.split = split
        self.captions_per_image = captions_per_image
        self.tagger = tagger
        self.data_set = "COCO, val2017" if split == "val2017" else "COCO, Karpathy's test split"  # type: ignore[misc]
        self._words: dict[int, list[list[str]]] = {}
        self._described: dict[int, list[list[str]]] | None = None

    @property
    def key(self) -> str:
        """`coco_5k_faithfulness` or `coco_val2017_faithfulness`."""
        return f"coco_{self.split}_faithfulness"

    def records(self) -> list[Captioned]:
        """See `RetrievalSuite.records`."""
        return CocoRetrieval(str(self.root), self.split, self.captions_per_image).records()

    def read(self, framing: Framing) -> Dataset[RetrievalSample]:
        """Read the captions, and their nouns and adjectives; see `Suite.read`."""
        records = self.records()
        self._words = {record.id: [words(caption) for caption in record.captions] for record in records}
        if self.tagger is not None:
            kept = iter(tagged((caption for record in records for caption in record.captions), self.tagger))
            self._described = {record.id: [described(next(kept)) for _ in record.captions] for record in records}
        return CaptionedImages(records, framing)

    def evaluation(self, module: AlignmentModule) -> SuiteEvaluation:
        """K-Precision by the objective's own score."""
        objective = module.objective
        metric = KPrecision(objective.score, self._words, self._described, objective.local_score)
        return FaithfulnessEvaluation(module, metric)


class FaithfulnessEvaluation(RetrievalEvaluation):
    """Embeds images and captions, and measures K-Precision."""

    def compute(self) -> dict[str, float]:
        """The numbers of `KPrecision`, and how many captions the tokenizer has cut."""
        return {**self.retrieval.compute(), "cut_captions": self.cut_captions()}


def words(caption: str) -> list[str]:
    """Runs of letters and digits, in lower case."""
    return re.findall(r"\w+", caption.lower())


def described(tagged_words: list[tuple[str, str]]) -> list[str]:
    """The nouns and adjectives among tagged words, split and in lower case as `words` has them."""
    return [part for word, tag in tagged_words if tag in NOUNS + ADJECTIVES for part in words(word)]
