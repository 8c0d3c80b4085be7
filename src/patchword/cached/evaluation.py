"""Evaluation samples together with their features."""

from __future__ import annotations

from dataclasses import replace

from torch.utils.data import Dataset

from patchword.cached.batch import CachedSample
from patchword.cached.store import FeatureStore
from patchword.cached.texts import WithTexts
from patchword.data.batch import Sample
from patchword.errors import UserError


class WithNegatives(Dataset[Sample]):
    """Samples whose hard negatives are appended to their captions, so that their features are computed as well.

    Args:
        samples: The samples of a split.
    """

    def __init__(self, samples: Dataset[Sample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Sample:
        sample = self.samples[index]
        phrases = [*sample.phrases, *([] for _ in sample.negatives)]
        return replace(sample, captions=_texts(sample), phrases=phrases, negatives=[], negative_caption=[])


class WholeSamples(Dataset[tuple[Sample, CachedSample]]):
    """Each sample with its features.

    Args:
        samples: The samples of a split.
        store: The features of these samples `WithNegatives`.
    """

    def __init__(self, samples: Dataset[Sample], store: FeatureStore | WithTexts) -> None:
        self.samples = samples
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> tuple[Sample, CachedSample]:
        """Returns the sample at `index` and its features.

        Raises:
            UserError: If the features belong to another sample.
        """
        sample, kept = self.samples[index], self.store[index]
        if (kept.id, kept.captions) != (sample.id, _texts(sample)):
            raise UserError(
                f"the features in {self.store.folder} do not belong to sample {sample.id}: remove the folder"
            )
        return sample, kept


def _texts(sample: Sample) -> list[str]:
    return [*sample.captions, *sample.negatives]
