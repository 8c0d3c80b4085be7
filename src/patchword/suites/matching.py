"""Suites of questions: which of several captions, which differ in one detail, belongs to which image?"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from patchword.errors import UserError
from patchword.features import Images, Texts
from patchword.metrics.compositional import Answers, caption_found, captions_tie, image_found, images_tie
from patchword.metrics.per_sample import PerSample
from patchword.suites.base import SuiteEvaluation
from patchword.suites.captioned import CaptionedBatch, CaptionedImages, CaptionedSample, CaptionedSuite
from patchword.suites.files import Framing

if TYPE_CHECKING:
    from patchword.module import AlignmentModule


class MatchingSuite(CaptionedSuite):
    """Questions, one for each record; see `Suite` for the options. Each data set is a subclass.

    Attributes:
        groups: The groups of the questions, after the questions are read.
    """

    groups: tuple[str, ...] = ()

    @abstractmethod
    def numbers(self, answers: Answers) -> dict[str, float]:
        """Return the metrics to report; `answers.group` has positions in `groups`."""

    def by_group(self, answers: Answers) -> Iterator[tuple[str, Answers]]:
        """Yield the name and the answers of each group."""
        for number, name in enumerate(self.groups):
            yield name, answers[answers.group == number]

    def read(self, framing: Framing) -> Dataset[CaptionedSample]:
        """Read the questions; see `Suite.read`."""
        records = self.records()
        if not records:
            raise UserError(f"{type(self).__name__} finds no questions in {self.root}: use the published files")
        self.groups = tuple(dict.fromkeys(record.group for record in records))
        return CaptionedImages(records, framing)

    def evaluation(self, module: AlignmentModule) -> SuiteEvaluation:
        """Return an empty evaluation that answers by the objective's own score."""
        return MatchingEvaluation(module, self)


class MatchingEvaluation(SuiteEvaluation):
    """Answers questions: images choose captions by `score`, captions choose images by `text_to_image_score`."""

    def __init__(self, module: AlignmentModule, suite: MatchingSuite) -> None:
        super().__init__()
        self.encode_texts, self.encode_images = module.encode_texts, module.encode_images
        self.objective = module.objective
        self.suite = suite
        self.answers = PerSample(7)

    def update(self, batch: CaptionedBatch) -> None:
        """Add a batch."""
        images, (texts, _) = self.images(batch), self.encode_texts(batch.captions)
        rows = []
        for number, group in enumerate(batch.groups):
            own = images[(batch.image_record == number).nonzero()[:, 0]]
            captions = texts[(batch.caption_record == number).nonzero()[:, 0]]
            scores, text_scores = self.scores(own, captions)
            by_image, by_caption = caption_found(scores).tolist(), image_found(text_scores).tolist()
            found = [*[*by_image, True][:2], *[*by_caption, True][:2], captions_tie(scores) or images_tie(text_scores)]
            rows.append([self.suite.groups.index(group), len(captions), *found])
        self.answers.update(batch.ids, torch.tensor(rows, dtype=torch.float64, device=batch.ids.device))

    def images(self, batch: CaptionedBatch) -> Images:
        """Embed the images of a batch."""
        return self.encode_images(batch.images)

    def scores(self, images: Images, captions: Texts) -> tuple[Float[Tensor, "I T"], Float[Tensor, "I T"]]:
        """The scores by which the images of a question choose captions, and captions choose images."""
        return self.objective.scores(images, captions)

    def compute(self) -> dict[str, float]:
        """The suite's metrics, `questions` (number of questions) and `ties` (number of questions with a tie)."""
        rows = self.answers.compute()
        group, captions = rows[:, :2].long().unbind(-1)
        answers = Answers(group, captions, rows[:, 2:4].bool(), rows[:, 4:6].bool(), rows[:, 6].bool())
        return counts(answers) | self.suite.numbers(answers)


def counts(answers: Answers, prefix: str = "") -> dict[str, float]:
    """The numbers of questions and of questions with a tie, with a prefix of their names."""
    return {f"{prefix}questions": float(len(answers)), f"{prefix}ties": float(answers.tied.sum())}
