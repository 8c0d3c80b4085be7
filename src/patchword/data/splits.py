"""Base class of data modules whose training, validation and test splits are data sets of samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from patchword.data.batch import Sample
from patchword.data.feature_cache import FeatureCache
from patchword.data.loader import evaluation_loader, training_loader
from patchword.errors import UserError
from patchword.protocols import MeasuringData


class Splits(LightningDataModule, ABC):
    """A data module whose subclass provides data sets for `train`, `val` and one or more test splits.

    Attributes:
        batch_size: Images per batch on each device.
        seed: Seed of the shuffling.
        num_workers: Number of processes that read images; 0 reads them in the training process.
        features: A cache of the features of frozen towers; None runs the towers on every batch.
        test_sets: Other data modules by name, whose test splits are measured as well, such as evaluation suites.
        test_splits: The names of the test splits.
    """

    batch_size: int
    seed: int
    num_workers: int
    features: FeatureCache | None = None
    test_sets: Mapping[str, Any] = MappingProxyType({})
    test_splits: ClassVar[tuple[str, ...]] = ("test",)

    def __init__(self) -> None:
        super().__init__()
        self._measured_by: dict[str, tuple[Any, str]] = {}  # the data module of a further test split, and its own name

    @abstractmethod
    def split(self, name: str) -> Dataset[Sample]:
        """Return the data set of a split."""

    @abstractmethod
    def fingerprint(self, split: str) -> str:
        """Return a hash of the files and of the options that determine the samples of a split.

        Raises:
            UserError: If the split cannot be read, or its images change from epoch to epoch.
        """

    def made_texts(self, split: str) -> list[str]:
        """Describe the texts that are made from the captions of a split, such as long texts and hard negatives.

        The fingerprint of `train` does not depend on them.
        """
        return []

    def setup(self, stage: str) -> None:
        """Set up `test_sets` for a test."""
        if stage == "test":
            for data in self.test_sets.values():
                data.trainer = self.trainer
                data.setup(stage)

    def train_dataloader(self) -> Any:
        """Return a shuffled, resumable loader of this device's share of the training images."""
        loader = self.training_samples()
        return loader if self.features is None else self.features.training_loader(self, loader)

    def training_samples(self) -> Any:
        """Return the loader of the training samples, without features."""
        world_size, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        return training_loader(self.split("train"), self.batch_size, self.seed, self.num_workers, world_size, rank)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return a loader of the validation images in order, with all captions."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> dict[str, DataLoader[Any]]:
        """Return loaders by name: the test images in order, with all captions, and then the loaders of `test_sets`.

        A test set's only loader has the name of the test set. Several loaders have this name and their own.

        Raises:
            UserError: If two test splits have the same name.
        """
        loaders = {name: self._evaluation_loader(name) for name in self.test_splits}
        for test_set, data in self.test_sets.items():
            own = data.test_dataloader()
            for split, loader in own.items():
                name = test_set if len(own) == 1 else f"{test_set}_{split}"
                if name in loaders:
                    raise UserError(f"data.test_sets: two test splits have the name {name}: rename one of them")
                loaders[name] = loader
                self._measured_by[name] = (data, split)
        return loaders

    def predict_dataloader(self) -> dict[str, DataLoader[Sample]]:
        """Return the test loaders without features and without `test_sets`."""
        return {name: self._samples(name) for name in self.test_splits}

    def suite(self, split: str) -> Any:
        """Return the suite among `test_sets` that measures the split of this name; None if there is none."""
        data, own = self._measured_by.get(split, (None, ""))
        return data.suite(own) if isinstance(data, MeasuringData) else None

    def _evaluation_loader(self, split: str) -> DataLoader[Any]:
        loader = self._samples(split)
        return loader if self.features is None else self.features.evaluation_loader(self, loader, split)

    def _samples(self, split: str) -> DataLoader[Sample]:
        return evaluation_loader(self.split(split), self.batch_size, self.num_workers)
