"""What data modules of users' own data share: loaders of a training, a validation and a test split."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from patchword.data.batch import Batch, Sample
from patchword.data.loader import evaluation_loader, training_loader


class Splits(LightningDataModule, ABC):
    """Loaders of the data sets that a subclass gives for `train`, `val` and `test`.

    Attributes:
        batch_size: Images per batch on each device.
        seed: Each seed shuffles in another way.
        num_workers: Processes that read images; 0 reads them in the training process.
    """

    batch_size: int
    seed: int
    num_workers: int

    @abstractmethod
    def split(self, name: str) -> Dataset[Sample]:
        """The data set of a split; pairs of an image and a caption for `train`."""

    @abstractmethod
    def fingerprint(self, split: str) -> str:
        """Depends on what the samples of `train`, `val` or `test` are: files, and options that change samples.

        Raises:
            InputError: If the split cannot be read, or its samples change from epoch to epoch.
        """

    def train_dataloader(self) -> Iterable[Batch]:
        """Shuffled and resumable; this device's share."""
        world_size, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        return training_loader(self.split("train"), self.batch_size, self.seed, self.num_workers, world_size, rank)

    def val_dataloader(self) -> DataLoader[Sample]:
        """The validation images in their order, with all captions."""
        return evaluation_loader(self.split("val"), self.batch_size, self.num_workers)

    def test_dataloader(self) -> dict[str, DataLoader[Sample]]:
        """By name: the test images in their order, with all captions."""
        return {"test": evaluation_loader(self.split("test"), self.batch_size, self.num_workers)}

    def predict_dataloader(self) -> dict[str, DataLoader[Sample]]:
        """The same as for the test."""
        return self.test_dataloader()
