"""Phrase grounding: does the map of a phrase lie on the boxes that people drew for it?"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from patchword.data.batch import Batch, Phrase, Sample, collate
from patchword.data.pixels import Box
from patchword.errors import InputError
from patchword.maps import SOURCES, TOKEN_SOURCES, phrase_keys, phrase_maps, queries
from patchword.metrics.boxes import NAMES, box_hits, covered
from patchword.metrics.per_sample import PerSample
from patchword.suites.base import Suite, SuiteBatch, SuiteEvaluation
from patchword.suites.files import Framing, checksum, load_image

if TYPE_CHECKING:
    from patchword.module import AlignmentModule

_PHRASES = 10_000  # more than any image has
_MAPS = {
    "cosine": "maps of the cosine of token and patch",
    "dot": "maps of the product of token and patch",
    "centre": "the distance to the image's centre, negated, as every map",
    "chance": "noise as maps",
}


@dataclass(frozen=True)
class Region:
    """A phrase and where it is seen.

    Attributes:
        caption: Its caption, among those of its image.
        start: First character of the phrase in its caption.
        end: One past its last character.
        boxes: One or more, in pixels of the image, right and bottom exclusive.
        groups: Kinds of phrases that it belongs to, among those of its suite.
    """

    caption: int
    start: int
    end: int
    boxes: tuple[Box, ...]
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class GroundedImage:
    """An image with what is annotated on it.

    Attributes:
        id: As published.
        path: The image.
        size: Its width and height, to which the boxes refer.
        captions: Its captions.
        regions: The phrases that have boxes, caption by caption.
        unboxed: Number of annotated phrases that have none.
    """

    id: int
    path: Path
    size: tuple[int, int]
    captions: tuple[str, ...]
    regions: tuple[Region, ...]
    unboxed: int = 0


@dataclass
class GroundingSample:
    """An image as the model sees it.

    Attributes:
        sample: Its pixels, captions and phrases.
        boxes: The boxes of each phrase, in pixels of the view.
        groups: Which groups each phrase belongs to.
        left_out: Number of phrases without any box, and of those without any in view.
        total: Checksum of the image and its annotations.
    """

    sample: Sample
    boxes: list[list[Box]]
    groups: list[list[bool]]
    left_out: tuple[int, int]
    total: int


@dataclass(kw_only=True)
class GroundingBatch(SuiteBatch, Batch):  # type: ignore[misc] # both have `to`, which does the same
    """Images with captions and phrases, as every `Batch`, and the boxes of the phrases.

    Attributes:
        sums: See `SuiteBatch`.
        boxes: All boxes of all phrases, in pixels of the view.
        box_phrase: The phrase of each, in ascending order.
        groups: Which groups each phrase belongs to.
        left_out: For each image, the number of phrases without any box, and of those without any in view.
    """

    sums: Int[Tensor, " I"]
    boxes: Float[Tensor, "K 4"]
    box_phrase: Int[Tensor, " K"]
    groups: Bool[Tensor, "N G"]
    left_out: Int[Tensor, "I 2"]


class PhraseGrounding(Suite):
    """Phrase grounding; each data set is a subclass.

    Args:
        root: The folder of the data set, as it is published.
        fit: How an image becomes a square: `stretch` shows all of it, and so all boxes; `crop` its centre, `backbone`
            as the image tower was trained.
        batch_size: Images per batch on each device, each with all its captions.
        options: What every suite takes; see `Suite`.

    Attributes:
        groups: Kinds of phrases for which the pointing game of `align` is measured apart, too.
        reported: The numbers of `metrics.boxes` that are reported: under which name, and what each is.
    """

    groups: ClassVar[tuple[str, ...]] = ()
    reported: ClassVar[dict[str, tuple[str, str]]]

    def __init__(
        self,
        root: str,
        fit: Literal["backbone", "crop", "stretch"] = "stretch",
        batch_size: int = 16,
        **options: Any,
    ) -> None:
        super().__init__(root, fit=fit, batch_size=batch_size, **options)
        self._query = "content"

    @property
    def definitions(self) -> dict[str, str]:  # type: ignore[override] # the model's query is a part of the names
        """For each number that is measured, what it is, in one sentence."""
        found = {
            f"grounding/{self._query}/{source}/{name}": what
            if source == "align"
            else f"Likewise, with {_MAPS[source]}."
            for name, what in self.reported.values()
            for source in SOURCES
        }
        return found | {
            f"grounding/{self._query}/align/pointing_{group}": f"Pointing of the phrases of type {group}."
            for group in self.groups
        }

    @abstractmethod
    def images(self) -> list[GroundedImage]:
        """Read and check the annotations.

        Raises:
            InputError: If a file is missing or not as published.
        """

    def read(self, framing: Framing) -> Dataset[GroundingSample]:
        """Read the annotations."""
        return GroundedImages(self.images(), self.groups, framing)

    def collate(self, samples: Sequence[GroundingSample]) -> GroundingBatch:
        """One batch, with the boxes of all phrases end to end."""
        boxes = [of_phrase for sample in samples for of_phrase in sample.boxes]
        groups = [of_phrase for sample in samples for of_phrase in sample.groups]
        owner = [phrase for phrase, of_phrase in enumerate(boxes) for _ in of_phrase]
        return GroundingBatch(
            **vars(collate([sample.sample for sample in samples])),
            sums=torch.tensor([sample.total for sample in samples]),
            boxes=torch.tensor([box for of_phrase in boxes for box in of_phrase], dtype=torch.float).view(-1, 4),
            box_phrase=torch.tensor(owner, dtype=torch.long),
            groups=torch.tensor(groups, dtype=torch.bool).view(len(groups), len(self.groups)),
            left_out=torch.tensor([sample.left_out for sample in samples]),
        )

    def evaluation(self, module: AlignmentModule) -> GroundingEvaluation:
        """Empty statistics."""
        self._query = module.query
        return GroundingEvaluation(module, self)


class GroundedImages(Dataset[GroundingSample]):
    """Annotated images.

    Args:
        images: What is annotated on each.
        groups: The kinds of phrases.
        framing: What the model sees of an image.
    """

    def __init__(self, images: list[GroundedImage], groups: tuple[str, ...], framing: Framing) -> None:
        self.images, self.groups, self.framing = images, groups, framing

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> GroundingSample:
        """One image.

        Raises:
            InputError: If it cannot be read, or has another size than its annotations.
        """
        grounded = self.images[index]
        image, content = load_image(grounded.path, f"image {grounded.id}", upright=False)
        if image.size != grounded.size:
            raise InputError(
                f"{grounded.path} has {image.width} x {image.height} pixels, and its annotations are for "
                f"{grounded.size[0]} x {grounded.size[1]}: give the images as published"
            )
        view = self.framing.view(image)
        phrases: list[list[Phrase]] = [[] for _ in grounded.captions]
        seen, boxes = [], []
        for region in grounded.regions:
            if of_phrase := [box for one in region.boxes if (box := view.box(one)) is not None]:
                left, top, right, bottom = zip(*of_phrase, strict=True)
                box = (min(left), min(top), max(right), max(bottom))
                phrases[region.caption].append(Phrase(region.start, region.end, box))
                seen.append(region)
                boxes.append(of_phrase)
        return GroundingSample(
            Sample(grounded.id, view.image(image), list(grounded.captions), phrases, []),
            boxes,
            [[group in region.groups for group in self.groups] for region in seen],
            (grounded.unboxed, len(grounded.regions) - len(seen)),
            checksum(content, *grounded.captions, *map(str, grounded.regions)),
        )


class GroundingEvaluation(SuiteEvaluation):
    """Collects, for each phrase, what the maps of every source hit.

    Args:
        module: Makes the maps.
        suite: Says what is reported.
    """

    def __init__(self, module: AlignmentModule, suite: PhraseGrounding) -> None:
        super().__init__()
        self.module = module
        self.suite = suite
        self.phrases = PerSample(2 + len(suite.groups) + len(SOURCES) * len(NAMES))
        self.left_out = PerSample(2)

    def update(self, batch: GroundingBatch) -> None:
        """Measure the phrases of a batch."""
        module: Any = self.module
        images, texts, tokens = module(batch)
        asked = queries(module.query, batch, images, texts, tokens, module.encoder, module.tokens)
        size = (batch.images.shape[2], batch.images.shape[3])
        hits = [
            box_hits(phrase_maps(source, module.objective, asked), images.grid, size, batch.boxes, batch.box_phrase)
            for source in SOURCES
        ]
        share = covered(batch.boxes, batch.box_phrase, len(batch.groups), size)
        keys = phrase_keys(batch)
        rows = torch.cat([asked.kept[:, None], share[:, None], batch.groups, *hits], -1)
        self.phrases.update(keys[:, 0] * _PHRASES + keys[:, 1], rows)
        self.left_out.update(batch.ids, batch.left_out.double())

    def compute(self) -> dict[str, float]:
        """The share of phrases that each source's maps hit, with chance; numbers of images and phrases.

        `cut_phrases` are those that the tokenizer cut, `unboxed_phrases` have no box in the data, `unseen_phrases` none
        in view; none of them counts.
        """
        rows, left_out = self.phrases.compute(), self.left_out.compute()
        kept = rows[rows[:, 0] == 1]
        groups = kept[:, 2 : 2 + len(self.suite.groups)] == 1
        hits = kept[:, 2 + len(self.suite.groups) :].unflatten(1, (len(SOURCES), len(NAMES)))
        means = dict(zip(SOURCES, hits.mean(0).unbind(), strict=True))
        chance = torch.cat([kept[:, 1].mean()[None], means["chance"][1:]])  # of pointing the expectation
        result = {}
        for column, key in enumerate(NAMES):
            if key in self.suite.reported:
                name = self.suite.reported[key][0]
                for source in SOURCES:
                    place = f"grounding/{self.module.query}/{source}"
                    result[f"{place}/{name}"] = float(means[source][column])
                    if source in TOKEN_SOURCES:
                        result[f"{place}/chance_{name}"] = float(chance[column])
        for name, member in zip(self.suite.groups, groups.unbind(1), strict=True):
            if member.any():
                place = f"grounding/{self.module.query}/align"
                result[f"{place}/pointing_{name}"] = float(hits[member, SOURCES.index("align"), 0].mean())
                result[f"{place}/chance_pointing_{name}"] = float(kept[member, 1].mean())
        counts = {"images": len(left_out), "phrases": len(kept), "cut_phrases": len(rows) - len(kept)}
        counts |= {"unboxed_phrases": int(left_out[:, 0].sum()), "unseen_phrases": int(left_out[:, 1].sum())}
        return result | {name: float(count) for name, count in counts.items()}
