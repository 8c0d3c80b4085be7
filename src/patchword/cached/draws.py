"""Training samples whose captions are drawn from the stored captions of an image."""

from __future__ import annotations

from torch.utils.data import Dataset

from patchword.cached.batch import CachedSample
from patchword.cached.store import FeatureStore
from patchword.cached.texts import WithTexts
from patchword.data.draws import DrawsCaptions


class DrawnFeatures(Dataset[CachedSample]):
    """The features of training samples; the same images and captions in each epoch as without a cache.

    Args:
        samples: The training samples.
        store: The features of `samples.whole`.
    """

    def __init__(self, samples: DrawsCaptions, store: FeatureStore | WithTexts) -> None:
        self.samples = samples
        self.store = store
        self.ids, self.captions = store.index()

    def __len__(self) -> int:
        return len(self.samples)  # type: ignore[arg-type]

    def __getitem__(self, index: int | tuple[int, int]) -> CachedSample:
        """Returns the sample at (index, epoch), or at `index` in epoch 0."""
        place, epoch = index if isinstance(index, tuple) else (index, 0)
        draw = self.samples.draw(place, epoch, self.ids, self.captions)
        kept = self.store.sample(draw.image, draw.captions)
        kept.id = draw.id
        return kept
