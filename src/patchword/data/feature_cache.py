"""The interface of a cache of features, for data modules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from patchword.data.batch import Sample

if TYPE_CHECKING:
    from patchword.data.splits import Splits


class FeatureCache(ABC):
    """Adds the stored features of frozen towers to the samples of a data module."""

    @abstractmethod
    def training_loader(self, data: Splits, loader: Any) -> Any:
        """Return a loader of the features of the training samples, in the order of `loader`."""

    @abstractmethod
    def evaluation_loader(self, data: Splits, loader: DataLoader[Sample], split: str) -> DataLoader[Any]:
        """Return a loader of the samples of `loader`, which are those of `split`, and of their features."""
