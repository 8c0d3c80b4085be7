"""Suites of questions: which caption belongs to which image, when they differ in one detail?"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from patchword.errors import InputError
from patchword.metrics.compositional import Answers, caption_found, image_found
from patchword.metrics.per_sample import PerSample
from patchword.suites.base import Suite, SuiteBatch, SuiteEvaluation
from patchword.suites.files import Framing, checksum
from patchword.suites.pictures import Picture

if TYPE_CHECKING:
    from patchword.module import AlignmentModule


@dataclass(frozen=True)
class Question:
    """Images and captions that are matched with each other.

    Attributes:
        id: The position in the published file.
        group: A category, a relation; what numbers are told apart by.
        pictures: One or two images.
        captions: Caption k belongs to image k, further captions to none.
    """

    id: int
    group: str
    pictures: tuple[Picture, ...]
    captions: tuple[str, ...]


@dataclass
class MatchingSample:
    """What the model sees of a question, and a checksum of it."""

    id: int
    group: int
    images: UInt8[Tensor, "I 3 H W"]
    captions: tuple[str, ...]
    sum: int


@dataclass
class MatchingBatch(SuiteBatch):
    """The M images and T captions of I questions.

    Attributes:
        group: The group of each question.
        images: Raw pixels.
        captions: The captions.
        image_sample: The question of each image.
        caption_sample: The question of each caption.
    """

    group: Int[Tensor, " I"]
    images: UInt8[Tensor, "M 3 H W"]
    captions: list[str]
    image_sample: Int[Tensor, " M"]
    caption_sample: Int[Tensor, " T"]


class Questions(Dataset[MatchingSample]):
    """Questions; images are read when one is asked for.

    Args:
        questions: The questions.
        groups: All their groups.
        framing: What the model sees of an image.
    """

    def __init__(self, questions: Sequence[Question], groups: Sequence[str], framing: Framing) -> None:
        self.questions = questions
        self.groups = {name: number for number, name in enumerate(groups)}
        self.framing = framing

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> MatchingSample:
        question = self.questions[index]
        read = [picture.read() for picture in question.pictures]
        return MatchingSample(
            id=question.id,
            group=self.groups[question.group],
            images=torch.stack([self.framing.pixels(image) for image, _ in read]),
            captions=question.captions,
            sum=checksum(question.id, *(crc for _, crc in read), *question.captions),
        )


class MatchingSuite(Suite):
    """Questions of images and captions; see `Suite` for the options. Each data set reads its own files.

    Attributes:
        groups: The groups of the questions, once they are read.
    """

    groups: tuple[str, ...] = ()

    @abstractmethod
    def questions(self) -> list[Question]:
        """All questions, in the order of the published file.

        Raises:
            InputError: If a file is missing or not as published.
        """

    @abstractmethod
    def numbers(self, answers: Answers) -> dict[str, float]:
        """What is reported; `answers.group` are positions in `groups`."""

    def read(self, framing: Framing) -> Dataset[MatchingSample]:
        """Read the questions; see `Suite.read`."""
        questions = self.questions()
        if not questions:
            raise InputError(f"{type(self).__name__} finds no questions: is it the published data?")
        self.groups = tuple(dict.fromkeys(question.group for question in questions))
        return Questions(questions, self.groups, framing)

    def collate(self, samples: Sequence[MatchingSample]) -> MatchingBatch:
        """One batch."""
        every = torch.arange(len(samples))
        return MatchingBatch(
            ids=torch.tensor([sample.id for sample in samples]),
            sums=torch.tensor([sample.sum for sample in samples]),
            group=torch.tensor([sample.group for sample in samples]),
            images=torch.cat([sample.images for sample in samples]),
            captions=[caption for sample in samples for caption in sample.captions],
            image_sample=every.repeat_interleave(torch.tensor([len(sample.images) for sample in samples])),
            caption_sample=every.repeat_interleave(torch.tensor([len(sample.captions) for sample in samples])),
        )

    def evaluation(self, module: AlignmentModule) -> SuiteEvaluation:
        """Answers by the objective's own score."""
        return MatchingEvaluation(module, self.numbers)


class MatchingEvaluation(SuiteEvaluation):
    """Answers questions: images choose captions by `score`, captions choose images by `text_score`.

    Args:
        module: The model.
        numbers: Makes of all answers what is reported.
    """

    def __init__(self, module: AlignmentModule, numbers: Callable[[Answers], dict[str, float]]) -> None:
        super().__init__()
        self.encode_texts, self.encode_images = module.encode_texts, module.encode_images
        self.objective = module.objective
        self.numbers = numbers
        self.answers = PerSample(6)

    def update(self, batch: MatchingBatch) -> None:
        """Add a batch."""
        images, (texts, _) = self.encode_images(batch.images), self.encode_texts(batch.captions)
        rows = []
        for sample, group in enumerate(batch.group.tolist()):
            own = images[(batch.image_sample == sample).nonzero()[:, 0]]
            captions = texts[(batch.caption_sample == sample).nonzero()[:, 0]]
            by_image = caption_found(self.objective.score(own, captions)).tolist()
            by_caption = image_found(self.objective.text_score(own, captions)).tolist()
            rows.append([group, len(captions), *[*by_image, True][:2], *[*by_caption, True][:2]])
        self.answers.update(batch.ids, torch.tensor(rows, dtype=torch.float64, device=batch.ids.device))

    def compute(self) -> dict[str, float]:
        """The suite's numbers, and `questions`, how many there are."""
        rows = self.answers.compute()
        answers = Answers(rows[:, 0].long(), rows[:, 1].long(), rows[:, 2:4].bool(), rows[:, 4:].bool())
        return {"questions": float(len(answers)), **self.numbers(answers)}
