"""Retrieval between images and their captions, as COCO, Flickr30k and data of long captions report it."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from patchword.features import Images, Texts
from patchword.metrics.per_sample import PerSample
from patchword.metrics.retrieval import KS, Retrieval
from patchword.objective import Objective
from patchword.suites.base import Suite, SuiteBatch, SuiteEvaluation
from patchword.suites.files import Framing, checksum
from patchword.suites.pictures import Picture

if TYPE_CHECKING:
    from patchword.module import AlignmentModule

DEFINITIONS = {
    **{
        f"retrieval/image_to_text/r@{k}": f"Share of images with a caption of their own among the top {k} captions by "
        "score; a wrong caption that ties, or scores NaN, ranks first."
        for k in KS
    },
    **{
        f"retrieval/text_to_image/r@{k}": f"Share of captions with their image among the top {k} images by score; a "
        "wrong image that ties, or scores NaN, ranks first."
        for k in KS
    },
    "retrieval/image_to_text/median_rank": "Median over images of the rank, from 1, of their best own caption.",
    "retrieval/text_to_image/median_rank": "Median over captions of the rank, from 1, of their image.",
    "retrieval/rsum": "Sum of the six recalls in percent: 600 at most.",
}


@dataclass(frozen=True)
class Captioned:
    """An image with its captions.

    Attributes:
        id: The position of the image in the published file.
        picture: The image.
        captions: One or more.
    """

    id: int
    picture: Picture
    captions: tuple[str, ...]


@dataclass
class RetrievalSample:
    """What the model sees of one `Captioned`, and a checksum of it."""

    id: int
    image: UInt8[Tensor, "3 H W"]
    captions: tuple[str, ...]
    sum: int


@dataclass
class RetrievalBatch(SuiteBatch):
    """I images and their T captions.

    Attributes:
        images: Raw pixels.
        captions: Those of the first image, then those of the second, and so on.
        caption_image: The image of each caption.
    """

    images: UInt8[Tensor, "I 3 H W"]
    captions: list[str]
    caption_image: Int[Tensor, " T"]


class CaptionedImages(Dataset[RetrievalSample]):
    """Images with captions; an image is read when it is asked for.

    Args:
        records: The images.
        framing: What the model sees of them.
    """

    def __init__(self, records: Sequence[Captioned], framing: Framing) -> None:
        self.records = records
        self.framing = framing

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> RetrievalSample:
        record = self.records[index]
        image, crc = record.picture.read()
        return RetrievalSample(
            record.id, self.framing.pixels(image), record.captions, checksum(record.id, crc, *record.captions)
        )


class RetrievalSuite(Suite):
    """Retrieval between images and captions; see `Suite` for the options. Each data set reads its own files.

    Attributes:
        folds: Parts that are ranked apart, as in `metrics.Retrieval`.
    """

    definitions: ClassVar[dict[str, str]] = DEFINITIONS
    folds: int = 1

    @abstractmethod
    def records(self) -> list[Captioned]:
        """The images with their captions, in the order of the published file.

        Raises:
            InputError: If a file is missing or not as published.
        """

    def read(self, framing: Framing) -> Dataset[RetrievalSample]:
        """Read the captions; see `Suite.read`."""
        return CaptionedImages(self.records(), framing)

    def collate(self, samples: Sequence[RetrievalSample]) -> RetrievalBatch:
        """One batch."""
        captions = torch.tensor([len(sample.captions) for sample in samples])
        return RetrievalBatch(
            ids=torch.tensor([sample.id for sample in samples]),
            sums=torch.tensor([sample.sum for sample in samples]),
            images=torch.stack([sample.image for sample in samples]),
            captions=[caption for sample in samples for caption in sample.captions],
            caption_image=torch.arange(len(samples)).repeat_interleave(captions),
        )

    def evaluation(self, module: AlignmentModule) -> SuiteEvaluation:
        """Recalls by the objective's own score."""
        objective = module.objective
        return RetrievalEvaluation(
            module,
            Retrieval(objective.score, objective.local_score, text_score=own_text_score(objective), folds=self.folds),
        )


class RetrievalEvaluation(SuiteEvaluation):
    """Embeds images and captions, and counts captions that the tokenizer has cut.

    Args:
        module: The model.
        retrieval: What is measured on the embeddings.
    """

    def __init__(self, module: AlignmentModule, retrieval: Retrieval) -> None:
        super().__init__()
        self.encode_texts, self.encode_images = module.encode_texts, module.encode_images
        self.retrieval = retrieval
        self.cut = PerSample(1)

    def update(self, batch: RetrievalBatch) -> None:
        """Add a batch."""
        texts, tokens = self.encode_texts(batch.captions)
        self.retrieval.update(self.encode_images(batch.images), texts, batch.caption_image, batch.ids)
        cut = torch.zeros_like(batch.ids).index_add(0, batch.caption_image, tokens.truncated.to(batch.ids))
        self.cut.update(batch.ids, cut[:, None].double())

    def compute(self) -> dict[str, float]:
        """`retrieval/...`, and how many captions the tokenizer has cut."""
        found = self.retrieval.compute()
        for name in ("r@", "chance_r@"):
            both = (found[f"{way}/{name}{k}"] for way in ("image_to_text", "text_to_image") for k in KS)
            found[name.replace("r@", "rsum")] = 100 * math.fsum(both)
        found["cut_captions"] = self.cut_captions()
        return {f"retrieval/{name}": value for name, value in found.items()}

    def cut_captions(self) -> float:
        """The number of captions that the tokenizer has cut; to be called on all ranks."""
        return float(self.cut.compute().sum())


def own_text_score(objective: Objective) -> Callable[[Images, Texts], Float[Tensor, "I T"]] | None:
    """The objective's way to rank images by a text, where it has one of its own."""
    return objective.text_score if type(objective).text_score is not Objective.text_score else None
