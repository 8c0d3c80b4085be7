"""Scenes of emoji with captions, boxes, masks and hard negatives, drawn deterministically on demand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch.utils.data import Dataset

from patchword.data.batch import Phrase, Sample
from patchword.data.pixels import require_image_size
from patchword.data.scenes.captions import Box, pick, write
from patchword.data.scenes.concepts import TRAINING_CONCEPTS, UNSEEN_COMBINATIONS, UNSEEN_CONCEPTS, Concept
from patchword.data.scenes.layout import SIZES, Sprite, Stamp, paint, place, side, stamp, visible
from patchword.data.scenes.negatives import Negative, Vocabulary
from patchword.data.scenes.sprites import sprite as emoji
from patchword.data.scenes.textures import background, texture
from patchword.errors import UserError

Split = Literal["train", "val", "test", "unseen_combinations", "unseen_concepts"]

REPEATS = 0.3  # how often the second object has the first one's noun in another color


class SceneDataset(Dataset[Sample]):
    """Scenes of any objects that a function can draw.

    A scene depends only on (stream, index). All its objects are different concepts, and a noun does not occur both with
    and without a color, so every phrase names exactly one object.

    Args:
        length: Number of scenes.
        featured: Every scene contains at least one of these concepts.
        others: Concepts for the other objects.
        sprite: A function that draws a concept with a given longer side in pixels.
        image_size: Height and width in pixels.
        objects: Smallest and largest number of objects.
        overlap: The largest fraction of the smaller of two boxes that the other box may cover.
        negatives: The kinds of hard negatives; a scene has one of each kind that is possible.
        shown: The smallest visible fraction of each object's pixels.
        textured: True draws stripes, checks, dots and clouds as backgrounds, False draws pastel colors.
        stream: Numbers that identify this stream of scenes; part of the random seed.

    Raises:
        UserError: If a number is out of range.
    """

    def __init__(
        self,
        length: int,
        featured: Sequence[Concept],
        others: Sequence[Concept],
        sprite: Sprite,
        image_size: int = 64,
        objects: tuple[int, int] = (2, 4),
        overlap: float = 0.05,
        negatives: Sequence[Negative] = ("color", "noun"),
        shown: float = 0.6,
        textured: bool = False,
        stream: tuple[int, ...] = (0,),
    ) -> None:
        if length < 1:
            raise UserError(f"length is {length}: a data set needs at least one scene")
        require_image_size(image_size, 32)  # smaller scenes do not show objects clearly
        if not 1 <= objects[0] <= objects[1] <= 12:
            limits = "a smallest and a largest number of objects from 1 to 12"
            raise UserError(f"objects must be {limits}, not {tuple(objects)}")
        if not 0 <= overlap <= 1:
            raise UserError(f"overlap must be between 0 and 1, not {overlap}")
        if not 0 < shown <= 1:
            raise UserError(f"shown must be more than 0 and at most 1, not {shown}")
        kinds = get_args(Negative)
        if unknown := {*negatives} - {*kinds}:
            raise UserError(f"unknown kinds of negatives {sorted(unknown)}; choose from {', '.join(kinds)}")
        self.length = length
        self.featured = featured
        self.others = others
        self.sprite = sprite
        self.image_size = image_size
        self.objects = objects
        self.overlap = overlap
        self.negatives = negatives
        self.shown = shown
        self.textured = textured
        self.stream = stream
        self._vocabulary = Vocabulary([*dict.fromkeys([*featured, *others])])
        self._stamps: dict[tuple[Concept, int], Stamp] = {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.length:
            raise IndexError(f"scene {index} is out of range: there are {self.length} scenes")
        rng = np.random.default_rng((*self.stream, index))
        concepts = self._cast(rng)
        stamps, boxes, masks = self._arrange(concepts, rng)
        canvas = texture(self.image_size, rng) if self.textured else background(self.image_size, rng)
        image = paint(canvas, stamps, boxes)
        order = rng.permutation(len(concepts)).tolist()
        mentioned = [concepts[i] for i in order]
        sentence = write([boxes[i] for i in order], rng)
        caption, spans = sentence.say([concept.phrase for concept in mentioned])
        wrong = [self._vocabulary.falsify(kind, mentioned, rng) for kind in self.negatives]
        shown = torch.from_numpy(masks)
        edges = np.array(boxes, dtype=float).tolist()
        return Sample(
            id=index,
            image=torch.from_numpy(image),
            captions=[caption],
            phrases=[[Phrase(*span, tuple(edges[i]), shown[i]) for i, span in zip(order, spans, strict=True)]],
            negatives=[sentence.say([concept.phrase for concept in false])[0] for false in wrong if false],
        )

    def boxes(self, index: int) -> list[tuple[str, Box]]:
        """The phrases of a scene and their boxes in pixels, without drawing the scene."""
        rng = np.random.default_rng((*self.stream, index))
        concepts = self._cast(rng)
        _, boxes, _ = self._arrange(concepts, rng)
        return [(concept.phrase, box) for concept, box in zip(concepts, boxes, strict=True)]

    def _cast(self, rng: np.random.Generator) -> list[Concept]:
        """Choose the concepts of a scene, in the order in which they are drawn."""
        low, high = self.objects
        count = low + int(rng.random() * (high - low + 1))
        cast = [pick(self.featured, rng)]
        siblings = self._vocabulary.recolored(cast[0])
        if count > 1 and siblings and rng.random() < REPEATS:
            cast.append(pick(siblings, rng))
        while len(cast) < count:
            new = pick(self.others, rng)
            if all(new.noun != old.noun or (new != old and new.color and old.color) for old in cast):
                cast.append(new)
        return [cast[i] for i in rng.permutation(count)]

    def _arrange(
        self, concepts: Sequence[Concept], rng: np.random.Generator
    ) -> tuple[list[Stamp], list[tuple[int, int, int, int]], np.ndarray]:
        """Return stamps, boxes and visible masks; objects shrink until all of them fit."""
        smaller = max(0, len(concepts) - 4)
        while True:
            sides = [side(self.image_size, smaller + int(x * SIZES)) for x in rng.random(len(concepts))]
            stamps = [self._stamp(concept, pixels) for concept, pixels in zip(concepts, sides, strict=True)]
            boxes = place(stamps, self.image_size, self.overlap, rng)
            if boxes is not None:
                masks = visible(stamps, boxes, self.image_size)
                shares = [np.count_nonzero(m) / np.count_nonzero(s.solid) for m, s in zip(masks, stamps, strict=True)]
                if min(shares) >= self.shown:
                    return stamps, boxes, masks
            smaller += 1

    def _stamp(self, concept: Concept, pixels: int) -> Stamp:
        key = concept, pixels
        if key not in self._stamps:
            self._stamps[key] = stamp(self.sprite(concept, pixels))
        return self._stamps[key]


class EmojiScenes(SceneDataset):
    """Scenes of OpenMoji pictures.

    Args:
        split: `train`, `val` and `test` show the training concepts. Every scene of `unseen_combinations` has a noun in
            a color that this noun never has in training. Every scene of `unseen_concepts` has a noun that training
            never shows.
        length: Number of scenes.
        image_size: Height and width in pixels.
        seed: Seed of the scenes.
        options: Other options of `SceneDataset`.
    """

    def __init__(self, split: Split, length: int, image_size: int = 64, seed: int = 0, **options: Any) -> None:
        featured = {"unseen_combinations": UNSEEN_COMBINATIONS, "unseen_concepts": UNSEEN_CONCEPTS}
        concepts = featured.get(split, TRAINING_CONCEPTS)
        stream = (seed, get_args(Split).index(split))
        super().__init__(length, concepts, TRAINING_CONCEPTS, emoji, image_size, stream=stream, **options)
