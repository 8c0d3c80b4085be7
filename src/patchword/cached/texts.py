"""Training samples whose images and texts are stored separately."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch.utils.data import Dataset

from patchword.cached.batch import CachedSample
from patchword.cached.store import FeatureStore


class WithTexts(Dataset[CachedSample]):
    """The images of one store with the texts of another store, which has the same samples.

    Args:
        images: The features of the images and of the captions of the data.
        texts: The texts that an objective reads, and what it needs besides.
        own_captions: Whether the features of captions are those of `texts`. Otherwise they are those of `images`.
    """

    def __init__(self, images: FeatureStore, texts: FeatureStore, own_captions: bool) -> None:
        self.images = images
        self.texts = texts
        self.own_captions = own_captions
        self.folder = images.folder

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int | tuple[int, int]) -> CachedSample:
        """Returns the sample at `index` or (index, epoch). Samples do not depend on the epoch."""
        return self.sample(index[0] if isinstance(index, tuple) else index)

    def sample(self, index: int, captions: Sequence[int] | None = None) -> CachedSample:
        """Returns the sample at `index` with those of its captions that have the indices `captions`; None for all."""
        image = self.images.sample(index, [] if self.own_captions else captions)
        text = self.texts.sample(index, captions)
        words = text.words if self.own_captions else image.words
        return replace(text, patches=image.patches, class_token=image.class_token, mask=image.mask, words=words)

    def index(self) -> tuple[list[int], list[int]]:
        """Returns the id and the number of captions of each sample."""
        return self.texts.index()
