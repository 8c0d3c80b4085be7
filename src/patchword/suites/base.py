"""What every evaluation suite is: data in its published layout, one protocol, numbers with their definitions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from jaxtyping import Int
from lightning import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from patchword.data.loader import evaluation_loader
from patchword.errors import InputError
from patchword.features import map_tensors
from patchword.spec import Specified
from patchword.suites.files import Framing

if TYPE_CHECKING:
    from patchword.module import AlignmentModule


@dataclass
class SuiteBatch:
    """What the batches of all suites have in common; each suite adds its own fields.

    Attributes:
        ids: Sample ids; a sample is counted once, however often a distributed sampler repeats it.
        sums: For each sample a checksum (CRC-32) of all that is measured on it: image file, texts, annotations.
    """

    ids: Int[Tensor, " I"]
    sums: Int[Tensor, " I"]

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: Any, **kwargs: Any) -> SuiteBatch:
        """The batch with its tensors on `device`."""
        return map_tensors(self, lambda x: x.to(device, **kwargs))

    def pin_memory(self) -> SuiteBatch:
        """The batch with its tensors in pinned memory; called by the DataLoader."""
        return map_tensors(self, lambda x: x.pin_memory())


class SuiteEvaluation(nn.Module, ABC):
    """Collects what a suite measures, batch by batch, on every rank."""

    @abstractmethod
    def update(self, batch: Any) -> None:
        """Add a batch of the suite."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Every number by name, over the samples of all ranks; to be called on all of them.

        `chance_<name>` beside `<name>` is what a guess gets; the number of samples is among them.
        """


class SuiteData(LightningDataModule, ABC):
    """A data module whose splits measure in ways of their own: a suite, or several."""

    @abstractmethod
    def suite(self, split: str) -> Suite:
        """The suite that measures the split of this name."""


class Suite(Specified, SuiteData, ABC):
    """One evaluation as papers report it.

    Args:
        root: The folder of the data set, as it is published.
        image_size: Height and width in pixels; null for what the encoder takes.
        fit: How an image becomes a square: `backbone` as the image tower was trained, `crop` its centre, `stretch` the
            whole image.
        batch_size: Samples per batch on each device.
        num_workers: Processes that read images; 0 reads them in the main process.

    Attributes:
        data_set: The name of the data set, as papers write it.
        definitions: For each number that is measured, what it is, in one sentence.
        key: Under which the numbers are logged: data set and split in lower case, such as `coco_5k`.
        per_class: A row for each class, with its name and its numbers, once they are computed; empty where there are no
            classes. `Results` writes them to a file of their own.
    """

    data_set: ClassVar[str]
    definitions: ClassVar[dict[str, str]]

    def __init__(
        self,
        root: str,
        image_size: int | None = None,
        fit: Literal["backbone", "crop", "stretch"] = "backbone",
        batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.root = Path(root)
        self.image_size = image_size
        self.fit = fit
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.per_class: list[dict[str, str | float]] = []
        self._read: Dataset[Any] | None = None

    @property
    @abstractmethod
    def key(self) -> str:
        """See above."""

    @abstractmethod
    def read(self, framing: Framing) -> Dataset[Any]:
        """Read and check the annotations; images are read when a sample is.

        Args:
            framing: What the model sees of an image.

        Raises:
            InputError: If a file is missing or not as published; the message names it, and the key or row.
        """

    @abstractmethod
    def collate(self, samples: Sequence[Any]) -> SuiteBatch:
        """One batch of the data set's samples."""

    @abstractmethod
    def evaluation(self, module: AlignmentModule) -> SuiteEvaluation:
        """Empty statistics for one pass over the samples."""

    def suite(self, split: str) -> Suite:
        """This one."""
        return self

    def protocol(self) -> dict[str, Any]:
        """The options that change what is measured, by name: all but places, sizes of batches and processes."""
        left_out = {"root", "images", "batch_size", "num_workers"}
        return {name: value for name, value in self.spec["init_args"].items() if name not in left_out}

    def setup(self, stage: str) -> None:
        """Read and check the annotations.

        Raises:
            InputError: If the stage is neither `test` nor `validate`, or as `read` does.
        """
        if stage not in ("test", "validate"):
            name = type(self).__name__
            raise InputError(f"{name} is an evaluation: run `patchword test` with it, not {stage.lower()}")
        self._read = self.read(self.framing())

    def framing(self) -> Framing:
        """What the model sees of an image, as `image_size` and `fit` say."""
        encoder: Any = self.trainer.lightning_module.encoder  # type: ignore[union-attr]
        return Framing(encoder.preprocessing.fitted(self.fit), self.image_size or encoder.image_size[0])

    def test_dataloader(self) -> dict[str, DataLoader[Any]]:
        """The samples in their order, under the suite's key."""
        assert self._read is not None, "Lightning calls setup first"
        return {self.key: evaluation_loader(self._read, self.batch_size, self.num_workers, self.collate)}

    def val_dataloader(self) -> dict[str, DataLoader[Any]]:
        """The same as for the test."""
        return self.test_dataloader()


class SuiteList(Specified, SuiteData):
    """Several suites in one run of `patchword test`.

    Args:
        suites: The suites; no two of the same key.

    Raises:
        InputError: If there is none, or two have one key.
    """

    def __init__(self, suites: list[Suite]) -> None:
        super().__init__()
        names = [suite.key for suite in suites]
        if not suites or len({*names}) < len(names):
            raise InputError(f"suites must be a list of one or more with different keys, not of {names}")
        self.suites = dict(zip(names, suites, strict=True))

    def suite(self, split: str) -> Suite:
        """The suite of this key."""
        return self.suites[split]

    def setup(self, stage: str) -> None:
        """Read and check all annotations, before the first is measured."""
        for suite in self.suites.values():
            suite.trainer = self.trainer
            suite.setup(stage)

    def test_dataloader(self) -> dict[str, DataLoader[Any]]:
        """The samples of each suite, under its key."""
        return {name: loader for suite in self.suites.values() for name, loader in suite.test_dataloader().items()}

    def val_dataloader(self) -> dict[str, DataLoader[Any]]:
        """The same as for the test."""
        return self.test_dataloader()
