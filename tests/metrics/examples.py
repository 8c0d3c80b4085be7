"""Random phrases and texts for the tests of metrics and maps."""

from __future__ import annotations

import torch

from patchword.data.batch import Batch, Phrase, Sample, collate
from patchword.features import Images, Texts

GRID = (3, 4)
SIZE = (15, 16)


def scenes(count: int = 6, seed: int = 0, first_id: int = 0, phrases: int = 3) -> Batch:
    """Samples with two hard negatives and one caption of up to `phrases` phrases with random rectangles."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for i in range(count):
        words = ["a red cup", "the blue book", "a snail"][: max(0, phrases - i % 2)]
        caption = " and ".join(words)
        spans = [(caption.index(word), caption.index(word) + len(word)) for word in words]
        found = [Phrase(start, end, *_rectangle(generator)) for start, end in spans]
        image = torch.randint(256, (3, *SIZE), dtype=torch.uint8, generator=generator)
        samples.append(Sample(first_id + i, image, [caption], [found], ["a wrong one", "another"][: 1 + i % 2]))
    return collate(samples)


def maps_of(batch: Batch, seed: int = 0, levels: int = 5) -> torch.Tensor:
    """Maps with few different values, so that many patches tie."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(batch.phrase_caption), GRID[0] * GRID[1])
    return torch.randint(levels, shape, generator=generator) / levels


def pairs(images: int, captions: list[int], seed: int = 0, width: int = 5) -> tuple[Images, Texts, torch.Tensor]:
    """Return images, texts of different lengths (`captions[i]` texts for image i), and the image of each text."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(captions)
    mask = torch.rand(count, 6, generator=generator) < 0.6
    patches = torch.randn(images, 12, width, generator=generator)
    tokens = torch.randn(count, 6, width, generator=generator)
    pooled = torch.randn(images, width, generator=generator), torch.randn(count, width, generator=generator)
    own = torch.arange(images).repeat_interleave(torch.tensor(captions))
    return Images(pooled[0], patches, GRID), Texts(pooled[1], tokens, mask), own


def _rectangle(generator: torch.Generator) -> tuple[tuple[float, float, float, float], torch.Tensor]:
    height, width = SIZE
    top, left = (int(torch.randint(n - 5, (), generator=generator)) for n in SIZE)
    bottom, right = (start + int(torch.randint(3, 6, (), generator=generator)) for start in (top, left))
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    mask &= torch.rand(height, width, generator=generator) < 0.9
    mask[top, left] = True
    return (float(left), float(top), float(right), float(bottom)), mask
