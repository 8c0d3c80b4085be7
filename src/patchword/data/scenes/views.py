"""Scenes with random crops of their images."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from patchword.data.augmentation import Views
from patchword.data.batch import Sample


class WithViews(Dataset[Sample]):
    """Training samples with further views of their images; the views depend only on the seed, the epoch and the index.

    Args:
        dataset: The samples without views.
        views: How to draw them.
        seed: Seed of the random choices.
    """

    def __init__(self, dataset: Dataset[Sample], views: Views, seed: int) -> None:
        self.dataset = dataset
        self.views = views
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: Any) -> Sample:
        return self.at(*index) if isinstance(index, tuple) else self.at(index, 0)

    def at(self, index: int, epoch: int) -> Sample:
        """Return the sample at `index` with its views in the given epoch."""
        sample, random = self.dataset[index], Random(f"{self.seed} {epoch} {index}")
        image = Image.fromarray(sample.image.permute(1, 2, 0).numpy())
        large, small = self.views.of(image, image.width, "bicubic", random)
        return replace(sample, global_views=large, local_views=small)
