"""Scenes of emoji with captions, boxes, masks and hard negatives, drawn on demand and the same every time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch.utils.data import Dataset

from patchword.data.batch import Phrase, Sample
from patchword.data.captions import pick, write
from patchword.data.concepts import TRAINING_CONCEPTS, UNSEEN_COMBINATIONS, UNSEEN_CONCEPTS, Concept
from patchword.data.layout import SIZES, Sprite, Stamp, background, paint, place, side, stamp, visible
from patchword.data.negatives import Negative, Vocabulary
from patchword.data.sprites import sprite as emoji
from patchword.data.textures import texture
from patchword.errors import InputError

Split = Literal["train", "val", "test", "unseen_combinations", "unseen_concepts"]

REPEATS = 0.3  # how often the second object is the first one's noun in another colour


class SceneDataset(Dataset[Sample]):
    """Scenes of any things that a function can draw.

    A scene is a function of (stream, index) alone. All its objects are different concepts, and no plain noun stands
    beside the same noun with a colour, so every phrase names one object.

    Args:
        length: Number of scenes.
        featured: One object of every scene is one of these.
        others: What the other objects are.
        sprite: Draws a concept with a given longer side in pixels.
        image_size: Height and width in pixels.
        objects: Smallest and largest number of objects.
        overlap: Largest share of the smaller of two boxes that the other may cover.
        negatives: The kinds of hard negatives, one each where the scene allows it.
        shown: Smallest share of its pixels that each object shows.
        textured: Stripes, checks, dots and clouds for a background.
        stream: Numbers that name this stream of scenes.

    Raises:
        InputError: If a number is out of its range.
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
        negatives: Sequence[Negative] = ("colour", "noun"),
        shown: float = 0.6,
        textured: bool = False,
        stream: tuple[int, ...] = (0,),
    ) -> None:
        _check(length, image_size, objects, overlap, negatives, shown)
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
            raise IndexError(f"scene {index} of {self.length}")
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

    def _cast(self, rng: np.random.Generator) -> list[Concept]:
        """The concepts of a scene, in the order in which they are drawn."""
        low, high = self.objects
        count = low + int(rng.random() * (high - low + 1))
        cast = [pick(self.featured, rng)]
        siblings = self._vocabulary.recoloured(cast[0])
        if count > 1 and siblings and rng.random() < REPEATS:
            cast.append(pick(siblings, rng))
        while len(cast) < count:
            new = pick(self.others, rng)
            if all(new.noun != old.noun or (new != old and new.colour and old.colour) for old in cast):
                cast.append(new)
        return [cast[i] for i in rng.permutation(count)]

    def _arrange(
        self, concepts: Sequence[Concept], rng: np.random.Generator
    ) -> tuple[list[Stamp], list[tuple[int, int, int, int]], np.ndarray]:
        """Stamps, boxes and visible masks; smaller and smaller until all objects find room."""
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
        split: `train`, `val` and `test` show the training concepts; every scene of `unseen_combinations` has a noun
            in a colour that it never has in training; every scene of `unseen_concepts` has a noun that training
            never shows.
        length: Number of scenes.
        image_size: Height and width in pixels.
        objects: Smallest and largest number of objects.
        overlap: Largest share of the smaller of two boxes that the other may cover.
        negatives: The kinds of hard negatives, one each where the scene allows it.
        shown: Smallest share of its pixels that each object shows.
        textured: Stripes, checks, dots and clouds for a background.
        seed: Each seed gives other scenes.

    Raises:
        InputError: If a number is out of its range.
    """

    def __init__(
        self,
        split: Split,
        length: int,
        image_size: int = 64,
        objects: tuple[int, int] = (2, 4),
        overlap: float = 0.05,
        negatives: Sequence[Negative] = ("colour", "noun"),
        shown: float = 0.6,
        textured: bool = False,
        seed: int = 0,
    ) -> None:
        featured = {"unseen_combinations": UNSEEN_COMBINATIONS, "unseen_concepts": UNSEEN_CONCEPTS}
        super().__init__(
            length=length,
            featured=featured.get(split, TRAINING_CONCEPTS),
            others=TRAINING_CONCEPTS,
            sprite=emoji,
            image_size=image_size,
            objects=objects,
            overlap=overlap,
            negatives=negatives,
            shown=shown,
            textured=textured,
            stream=(seed, get_args(Split).index(split)),
        )


def _check(
    length: int,
    image_size: int,
    objects: tuple[int, int],
    overlap: float,
    negatives: Sequence[Negative],
    shown: float,
) -> None:
    if length < 1:
        raise InputError(f"a data set needs at least one scene, not {length}")
    if image_size < 32:
        raise InputError(f"image_size must be at least 32 pixels, or objects cannot be told apart; it is {image_size}")
    if not 1 <= objects[0] <= objects[1] <= 12:
        raise InputError(f"objects must be a smallest and a largest number from 1 to 12, not {tuple(objects)}")
    if not 0 <= overlap <= 1:
        raise InputError(f"overlap must be between 0 and 1, not {overlap}")
    if not 0 < shown <= 1:
        raise InputError(f"shown must be more than 0 and at most 1, not {shown}")
    if unknown := set(negatives) - set(get_args(Negative)):
        raise InputError(f"unknown kinds of negatives {sorted(unknown)}; choose from {', '.join(get_args(Negative))}")
