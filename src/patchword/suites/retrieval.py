"""Retrieval between images and their captions, as on COCO, Flickr30k and data sets of long captions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import torch

from patchword.metrics.per_sample import PerSample
from patchword.metrics.retrieval import KS, Retrieval, own_retrieval
from patchword.suites.base import SuiteEvaluation
from patchword.suites.captioned import CaptionedBatch, CaptionedSuite

if TYPE_CHECKING:
    from patchword.module import AlignmentModule

DEFINITIONS = {
    **{
        f"retrieval/image_to_text/r@{k}": f"Share of images with any of their own captions among the top {k} captions "
        "by score; a wrong caption that ties or scores NaN is ranked first."
        for k in KS
    },
    **{
        f"retrieval/text_to_image/r@{k}": f"Share of captions with their own image among the top {k} images by score; "
        "a wrong image that ties or scores NaN is ranked first."
        for k in KS
    },
    "retrieval/image_to_text/median_rank": "Median over images of the rank, from 1, of their best own caption.",
    "retrieval/text_to_image/median_rank": "Median over captions of the rank, from 1, of their own image.",
    "retrieval/rsum": "Sum of the six recalls in percent; the maximum is 600.",
}


class RetrievalSuite(CaptionedSuite):
    """Retrieval between images and captions; see `Suite` for the options. Each data set is a subclass.

    Attributes:
        folds: The number of parts that are ranked separately; see `metrics.Retrieval`.
    """

    definitions: ClassVar[dict[str, str]] = DEFINITIONS
    folds: int = 1

    def evaluation(self, module: AlignmentModule) -> SuiteEvaluation:
        """Return an empty evaluation of retrieval with the objective's own score."""
        return RetrievalEvaluation(module, own_retrieval(module.objective, self.folds))


class RetrievalEvaluation(SuiteEvaluation):
    """Embeds images and captions, and counts captions that are empty or truncated by the tokenizer."""

    def __init__(self, module: AlignmentModule, retrieval: Retrieval) -> None:
        super().__init__()
        self.encode_texts, self.encode_images = module.encode_texts, module.encode_images
        self.retrieval = retrieval
        self.counts = PerSample(2)

    def update(self, batch: CaptionedBatch) -> None:
        """Add a batch."""
        texts, tokens = self.encode_texts(batch.captions)
        self.retrieval.update(self.encode_images(batch.images), texts, batch.caption_record, batch.ids)
        empty = torch.tensor([not caption.strip() for caption in batch.captions], device=batch.ids.device)
        of_caption = torch.stack([tokens.truncated.to(batch.ids), empty.to(batch.ids)], -1)
        counts = batch.ids.new_zeros(len(batch.ids), 2).index_add(0, batch.caption_record, of_caption)
        self.counts.update(batch.ids, counts.double())

    def compute(self) -> dict[str, float]:
        """The metrics `retrieval/...`, and the numbers of empty and of truncated captions."""
        found = self.retrieval.compute()
        for name in ("r@", "chance_r@"):
            both = (found[f"{way}/{name}{k}"] for way in ("image_to_text", "text_to_image") for k in KS)
            found[name.replace("r@", "rsum")] = 100 * math.fsum(both)
        found["cut_captions"], found["empty_captions"] = self.counts.compute().sum(0).tolist()
        return {f"retrieval/{name}": value for name, value in found.items()}
