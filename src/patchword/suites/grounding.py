"""Phrase grounding: does the map of a phrase highlight the boxes that people annotated for it?"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from patchword.data.batch import Batch, Phrase, Sample, collate
from patchword.data.pixels import Box, ResizeOption
from patchword.errors import UserError
from patchword.features import Images
from patchword.maps.phrases import BASELINES, Source, areas, phrase_keys, phrase_maps, queries
from patchword.maps.sources import PLAIN_SOURCES
from patchword.metrics.boxes import NAMES, box_hits, covered
from patchword.metrics.candidates import candidate_hits
from patchword.metrics.per_sample import PerSample
from patchword.suites.base import Suite, SuiteBatch, SuiteEvaluation
from patchword.suites.files import Framing, checksum, load_image
from patchword.suites.proposed import proposed_boxes

if TYPE_CHECKING:
    from patchword.module import AlignmentModule

_PHRASES = 10_000  # more phrases than any image has
_MAPS = {
    "align": "A phrase's map is the mean of the objective's own maps of its tokens.",
    "cosine": "A phrase's map is the mean over its tokens of the cosine of token and patch.",
    "dot": "A phrase's map is the mean over its tokens of the dot product of token and patch.",
    "value": "A phrase's map is the mean over its tokens of the cosine of token and patch on MaskCLIP's value path.",
    "grad_eclip": "A phrase's map is the mean over its tokens of Grad-ECLIP's maps.",
    "chefer": "A phrase's map is the mean over its tokens of the relevance of Chefer et al.",
    "legrad": "A phrase's map is the mean over its tokens of LeGrad's maps.",
    "grad_cam": "A phrase's map is the mean over its tokens of Grad-CAM's maps.",
    "banzhaf": "A phrase's map is the mean over its words of their sampled interactions with the patches.",
    "center_prior": "Every map is the negated distance to the image's center.",
    "chance": "Every map is noise.",
}


@dataclass(frozen=True)
class Region:
    """A phrase and its boxes.

    Attributes:
        caption: The index of the phrase's caption among the captions of the image.
        start: The index of the first character of the phrase in its caption.
        end: The index after the last character of the phrase.
        boxes: One or more boxes in pixels of the image, right and bottom exclusive.
        groups: The types of the phrase, among the `groups` of its suite.
    """

    caption: int
    start: int
    end: int
    boxes: tuple[Box, ...]
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class GroundedImage:
    """An image with its annotations.

    Attributes:
        id: The published id of the image.
        path: The path of the image.
        size: The width and height of the image, to which the boxes refer.
        captions: The captions of the image.
        regions: The phrases with boxes, caption by caption.
        unboxed: The number of annotated phrases without a box.
        candidates: Boxes in pixels of the image among which a map chooses.
    """

    id: int
    path: Path
    size: tuple[int, int]
    captions: tuple[str, ...]
    regions: tuple[Region, ...]
    unboxed: int = 0
    candidates: tuple[Box, ...] = ()


@dataclass
class GroundingSample:
    """An image as the model sees it, with its phrases.

    Attributes:
        sample: The pixels, captions and phrases of the image.
        groups: For each phrase, one value per group of the suite: True if the phrase belongs to the group.
        left_out: The number of phrases without any box, and the number of phrases without any box in view.
        total: A checksum of the image and its annotations.
        candidates: Boxes in pixels of the view among which a map chooses.
    """

    sample: Sample
    groups: list[list[bool]]
    left_out: tuple[int, int]
    total: int
    candidates: list[Box]


@dataclass(kw_only=True)
class GroundingBatch(SuiteBatch, Batch):  # type: ignore[misc] # both have `to`, which does the same
    """A `Batch` of images with captions and phrases, with checksums, groups and counts.

    Attributes:
        sums: The checksum of each image and its annotations; see `SuiteBatch`.
        groups: True if phrase n belongs to group g of the suite.
        left_out: For each image, the number of phrases without any box, and of phrases without any box in view.
        candidates: Boxes in pixels among which a map chooses.
        candidate_image: The image of each candidate.
    """

    sums: Int[Tensor, " I"]
    groups: Bool[Tensor, "N G"]
    left_out: Int[Tensor, "I 2"]
    candidates: Float[Tensor, "J 4"]
    candidate_image: Int[Tensor, " J"]


class PhraseGrounding(Suite):
    """Phrase grounding; each data set is a subclass.

    Args:
        root: The folder of the data set, in its published layout.
        resize_mode: How an image becomes a square: `stretch` stretches the complete image, so that all boxes are in
            view, `crop` crops the center, `backbone` is as in the training of the image tower, `native` keeps the shape
            of the complete image and pads it (NaFlex models only).
        batch_size: The number of images per batch on each device, each with all its captions.
        options: Options of all suites; see `Suite`.

    Attributes:
        groups: The types of phrases for which the pointing game of `align` is also measured separately.
        reported: For each metric of `metrics.boxes` that is reported, the reported name and the definition.
        choice: The name and the definition of the accuracy of a choice among candidates; None if there are none.
        proposes: Whether the candidates are the regions that the objective proposes.
    """

    groups: ClassVar[tuple[str, ...]] = ()
    choice: tuple[str, str] | None = None
    proposes: bool = False
    reported: ClassVar[dict[str, tuple[str, str]]]

    def __init__(
        self,
        root: str,
        resize_mode: ResizeOption = "stretch",
        batch_size: int = 16,
        **options: Any,
    ) -> None:
        super().__init__(root, resize_mode=resize_mode, batch_size=batch_size, **options)
        self._query = "content"
        self._sources: tuple[Source, ...] = (*PLAIN_SOURCES, *BASELINES)

    @property
    def definitions(self) -> dict[str, str]:  # type: ignore[override] # the model's query is a part of the names
        """The definition of each metric, by the name of the metric."""
        found = {
            f"grounding/{self._query}/{source}/{name}": f"{what} {_MAPS[source]}"
            for name, what in (*self.reported.values(), *([self.choice] if self.choice else []))
            for source in self._sources
        }
        return found | {
            f"grounding/{self._query}/align/pointing_game_{group}": f"The pointing_game of phrases of type {group}."
            for group in self.groups
            if "align" in self._sources
        }

    @abstractmethod
    def images(self) -> list[GroundedImage]:
        """Read and check the annotations.

        Raises:
            UserError: If a file is missing or not as published.
        """

    def read(self, framing: Framing) -> Dataset[GroundingSample]:
        """Read the annotations; see `Suite.read`."""
        return GroundedImages(self.images(), self.groups, framing)

    def collate(self, samples: Sequence[GroundingSample]) -> GroundingBatch:
        """Combine samples into one batch."""
        groups = [of_phrase for sample in samples for of_phrase in sample.groups]
        return GroundingBatch(
            **vars(collate([sample.sample for sample in samples])),
            sums=torch.tensor([sample.total for sample in samples]),
            groups=torch.tensor(groups, dtype=torch.bool).view(len(groups), len(self.groups)),
            left_out=torch.tensor([sample.left_out for sample in samples]),
            candidates=torch.tensor([box for one in samples for box in one.candidates], dtype=torch.float).view(-1, 4),
            candidate_image=torch.tensor([n for n, s in enumerate(samples) for _ in s.candidates], dtype=torch.long),
        )

    def evaluation(self, module: AlignmentModule) -> GroundingEvaluation:
        """Return an empty evaluation for the model's phrase query."""
        self._query = module.phrase_query
        self._sources = (*module.map_sources, *BASELINES)
        return GroundingEvaluation(module, self)


class GroundedImages(Dataset[GroundingSample]):
    """Annotated images.

    Args:
        images: The images with their annotations.
        groups: The types of phrases.
        framing: How an image becomes the model's input.
    """

    def __init__(self, images: list[GroundedImage], groups: tuple[str, ...], framing: Framing) -> None:
        self.images, self.groups, self.framing = images, groups, framing

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> GroundingSample:
        """Return one image with its phrases.

        Raises:
            UserError: If the image cannot be read, or if its size differs from that of its annotations.
        """
        grounded = self.images[index]
        image, content = load_image(grounded.path, f"image {grounded.id}", upright=False)
        if image.size != grounded.size:
            raise UserError(
                f"{grounded.path} has {image.width} x {image.height} pixels, but its annotations are for "
                f"{grounded.size[0]} x {grounded.size[1]}: use the published images"
            )
        view = self.framing.view(image)
        phrases: list[list[Phrase]] = [[] for _ in grounded.captions]
        seen = []
        for region in grounded.regions:
            if of_phrase := [box for one in region.boxes if (box := view.box(one)) is not None]:
                phrase = Phrase.of_boxes(region.start, region.end, of_phrase, view.size)
                phrases[region.caption].append(replace(phrase, mask=None))  # this suite measures with boxes only
                seen.append(region)
        return GroundingSample(
            Sample(grounded.id, view.image(image), list(grounded.captions), phrases, []),
            [[group in region.groups for group in self.groups] for region in seen],
            (grounded.unboxed, len(grounded.regions) - len(seen)),
            checksum(content, *grounded.captions, *map(str, grounded.regions), *map(str, grounded.candidates)),
            [box for one in grounded.candidates if (box := view.box(one)) is not None],
        )


class GroundingEvaluation(SuiteEvaluation):
    """Collects the hits of every phrase for every source of maps.

    Args:
        module: The model that computes the maps.
        suite: The suite, which defines the reported metrics.
    """

    def __init__(self, module: AlignmentModule, suite: PhraseGrounding) -> None:
        super().__init__()
        self.module = module
        self.suite = suite
        self.sources: tuple[Source, ...] = (*module.map_sources, *BASELINES)
        choices = 1 + len(self.sources) if suite.choice else 0
        self.phrases = PerSample(2 + len(suite.groups) + len(self.sources) * len(NAMES) + choices)
        self.left_out = PerSample(3)

    def update(self, batch: GroundingBatch) -> None:
        """Measure the phrases of a batch."""
        module: Any = self.module
        images, texts, tokens = module(batch)
        asked = queries(module.phrase_query, batch, images, texts, tokens, module.encoder, module.token_selection)
        maps = [phrase_maps(source, module.objective, asked) for source in self.sources]
        candidates = self._candidates(batch, images)
        width = 1 + len(self.sources) * len(NAMES) + (1 + len(self.sources) if self.suite.choice else 0)
        found = batch.boxes.new_zeros(len(batch.groups), width)
        for area in areas(asked.images.shapes, images.grid):
            boxes, owner = area.boxes(batch.boxes, batch.box_phrase, len(found))
            size = area.pixels((batch.images.shape[2], batch.images.shape[3]))
            share = covered(boxes, owner, len(found[area.index]), size)
            hits = [box_hits(area.crop(own), area.grid, size, boxes, owner) for own in maps]
            if self.suite.choice:
                own = torch.stack([area.crop(of_source) for of_source in maps])
                choices = [candidates[n] for n in batch.caption_image[batch.phrase_caption][area.index].tolist()]
                hits.append(candidate_hits(own, area.grid, size, boxes, owner, choices))
            found[area.index] = torch.cat([share[:, None], *hits], -1)
        keys = phrase_keys(batch)
        rows = torch.cat([asked.kept[:, None], found[:, :1], batch.groups, found[:, 1:]], -1)
        self.phrases.update(keys[:, 0] * _PHRASES + keys[:, 1], rows)
        number = torch.tensor([[len(own)] for own in candidates], dtype=torch.double, device=batch.ids.device)
        self.left_out.update(batch.ids, torch.cat([batch.left_out.double(), number], 1))

    def _candidates(self, batch: GroundingBatch, images: Images) -> list[Float[Tensor, "_ 4"]]:
        """The candidate boxes of each image, or the regions that the objective proposes in it.

        Raises:
            UserError: If the candidates are regions, and the objective proposes none.
        """
        if not self.suite.proposes:
            return [batch.candidates[batch.candidate_image == n] for n in range(len(batch.ids))]
        objective: Any = self.module.objective
        size = (batch.images.shape[2], batch.images.shape[3])
        found = []
        for n in range(len(batch.ids)):
            if (boxes := proposed_boxes(objective, images[n : n + 1], size)) is None:
                name = type(objective).__name__
                raise UserError(
                    f"data.candidates is regions, but {name} proposes none (LOUPE does): set data.candidates to "
                    "ground_truth, to a file of proposals, or to null"
                )
            found.append(boxes)
        return found

    def compute(self) -> dict[str, float]:
        """The metrics of each source of maps with their chance levels, and the numbers of images and phrases.

        `cut_phrases` were truncated by the tokenizer, `unboxed_phrases` have no box in the data, and `unseen_phrases`
        have no box in view. These phrases do not count.
        """
        rows, left_out = self.phrases.compute(), self.left_out.compute()
        kept = rows[rows[:, 0] == 1]
        groups = kept[:, 2 : 2 + len(self.suite.groups)] == 1
        start = 2 + len(self.suite.groups)
        end = start + len(self.sources) * len(NAMES)
        hits = kept[:, start:end].unflatten(1, (len(self.sources), len(NAMES)))
        means = dict(zip(self.sources, hits.mean(0).unbind(), strict=True))
        chance = torch.cat(
            [kept[:, 1].mean()[None], means["chance"][1:]]
        )  # the chance level of the pointing game is exact
        result = {}
        for column, key in enumerate(NAMES):
            if key in self.suite.reported:
                name = self.suite.reported[key][0]
                for source in self.sources:
                    place = f"grounding/{self.module.phrase_query}/{source}"
                    result[f"{place}/{name}"] = float(means[source][column])
                    if source not in BASELINES:
                        result[f"{place}/chance_{name}"] = float(chance[column])
        if self.suite.choice:
            result |= self._choices(self.suite.choice[0], kept[:, end:].mean(0).tolist())
        for name, member in zip(self.suite.groups, groups.unbind(1), strict=True):
            if member.any() and "align" in self.sources:
                place = f"grounding/{self.module.phrase_query}/align"
                result[f"{place}/pointing_game_{name}"] = float(hits[member, self.sources.index("align"), 0].mean())
                result[f"{place}/chance_pointing_game_{name}"] = float(kept[member, 1].mean())
        counts = {"images": len(left_out), "phrases": len(kept), "cut_phrases": len(rows) - len(kept)}
        counts |= {"unboxed_phrases": int(left_out[:, 0].sum()), "unseen_phrases": int(left_out[:, 1].sum())}
        if self.suite.choice:
            counts |= {"candidates": int(left_out[:, 2].sum())}
            counts |= {"images_without_candidates": int((left_out[:, 2] == 0).sum())}
        return result | {name: float(count) for name, count in counts.items()}

    def _choices(self, name: str, means: list[float]) -> dict[str, float]:
        """The accuracy of the choice among candidates of each source; `means` begins with the chance level."""
        result = {}
        for source, value in zip(self.sources, means[1:], strict=True):
            place = f"grounding/{self.module.phrase_query}/{source}"
            result[f"{place}/{name}"] = value
            if source not in BASELINES:
                result[f"{place}/chance_{name}"] = means[0]
        return result
