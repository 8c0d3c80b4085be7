"""Faithfulness of retrieved captions on COCO: K-Precision."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch.utils.data import Dataset

from patchword.metrics.k_precision import KPrecision
from patchword.suites.base import SuiteEvaluation
from patchword.suites.captioned import CaptionedImages, CaptionedSample
from patchword.suites.coco import CocoRetrieval
from patchword.suites.files import Framing
from patchword.suites.retrieval import RetrievalEvaluation
from patchword.suites.tagger import ADJECTIVES, NOUNS, tagged

if TYPE_CHECKING:
    from patchword.module import AlignmentModule

_IN_TRUTH = "that occur in any of the image's own captions (lower case, runs of letters and digits, with repetitions)"


class CocoFaithfulness(CocoRetrieval):
    """K-Precision on COCO, as SPARC (Bica et al., ICML 2024, arXiv 2401.09865, table 4) reports it.

    The paper does not specify how words are split and tagged, and whether the image's own captions can be retrieved.
    Here they can be retrieved; words are runs of letters and digits in lower case; spaCy tags the words.

    Args:
        root: The folder of the data set; see `CocoRetrieval`.
        split: `5k` is Karpathy's test split, `val2017` the 2017 validation set.
        captions_per_image: Use the first captions of each image, up to this number; null uses all captions.
        tagger: The spaCy model that finds nouns and adjectives, such as `en_core_web_sm`; null leaves out
            `k_precision_na`.
        options: Options of all suites; see `Suite`.
    """

    definitions: ClassVar[dict[str, str]] = {
        "k_precision": "Share of the words of the retrieved caption, which scores highest with the image among the "
        f"captions of all images, {_IN_TRUTH}; mean over images; chance is the mean over all captions.",
        "k_precision_na": "Share of the nouns and adjectives (spaCy's Penn tags NN*, JJ*) of the retrieved caption "
        f"{_IN_TRUTH}; mean over images whose retrieved caption has any; chance is the mean over all captions that "
        "have any.",
    }

    def __init__(
        self,
        root: str,
        split: Literal["5k", "val2017"] = "5k",
        captions_per_image: int | None = 5,
        tagger: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(root, split, captions_per_image, **options)
        self.tagger = tagger
        self._words: dict[int, list[list[str]]] = {}
        self._described: dict[int, list[list[str]]] | None = None

    @property
    def key(self) -> str:
        """`coco_5k_faithfulness` or `coco_val2017_faithfulness`."""
        return f"{super().key}_faithfulness"

    def read(self, framing: Framing) -> Dataset[CaptionedSample]:
        """Read the captions, and their nouns and adjectives; see `Suite.read`."""
        records = self.records()
        self._words = {record.id: [words(caption) for caption in record.captions] for record in records}
        if self.tagger is not None:
            kept = iter(tagged((caption for record in records for caption in record.captions), self.tagger))
            self._described = {record.id: [described(next(kept)) for _ in record.captions] for record in records}
        return CaptionedImages(records, framing)

    def evaluation(self, module: AlignmentModule) -> SuiteEvaluation:
        """Return an empty evaluation of K-Precision with the objective's own score."""
        objective = module.objective
        metric = KPrecision(objective.score, self._words, self._described, objective.uses_local_features)
        return FaithfulnessEvaluation(module, metric)


class FaithfulnessEvaluation(RetrievalEvaluation):
    """Embeds images and captions, and measures K-Precision."""

    def compute(self) -> dict[str, float]:
        """The metrics of `KPrecision`, and the numbers of truncated and of empty captions."""
        cut, empty = self.counts.compute().sum(0).tolist()
        return {**self.retrieval.compute(), "cut_captions": cut, "empty_captions": empty}


def words(caption: str) -> list[str]:
    """The words of a caption: runs of letters and digits, in lower case."""
    return re.findall(r"\w+", caption.lower())


def described(tagged_words: list[tuple[str, str]]) -> list[str]:
    """The nouns and adjectives among tagged words, split and in lower case as in `words`."""
    return [part for word, tag in tagged_words if tag in NOUNS + ADJECTIVES for part in words(word)]
