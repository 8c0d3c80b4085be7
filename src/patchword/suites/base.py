"""Base classes of the evaluation suites: a published data set, a protocol, and metrics with definitions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from jaxtyping import Int
from lightning import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from patchword.data.loader import evaluation_loader
from patchword.data.pixels import ResizeOption, require_image_size
from patchword.errors import UserError
from patchword.features import map_tensors
from patchword.provenance.spec import Configurable
from patchword.suites.files import Framing

if TYPE_CHECKING:
    from patchword.module import AlignmentModule


@dataclass
class SuiteBatch:
    """The fields that the batches of all suites have in common; each suite adds its own fields.

    Attributes:
        ids: Sample ids. A sample is counted once, even if a distributed sampler repeats it.
        sums: A checksum (CRC-32) per sample of everything that is measured: image file, texts and annotations.
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
    """Collects the measurements of a suite, batch by batch, on every rank."""

    @abstractmethod
    def update(self, batch: Any) -> None:
        """Add a batch of the suite."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Return every number by name, over the samples of all ranks. Call this method on every rank.

        `chance_<name>` is the chance level of `<name>`, and `class_prior_<name>` is the value that class mean maps
        reach. The result includes the number of samples.
        """


class SuiteData(LightningDataModule, ABC):
    """A data module whose splits define their own metrics: one suite, or several suites."""

    @abstractmethod
    def suite(self, split: str) -> Suite:
        """Return the suite of the split with this name."""

    def val_dataloader(self) -> dict[str, DataLoader[Any]]:
        """The same loaders as for the test."""
        loaders: dict[str, DataLoader[Any]] = self.test_dataloader()
        return loaders


class Suite(Configurable, SuiteData, ABC):
    """One evaluation as it is reported in papers.

    Args:
        root: The folder of the data set, in its published layout.
        images: The folder of the images, if it is not in `root`; null for the published folder in `root`.
        image_size: The height and width of images in pixels; null for the image size of the encoder.
        resize_mode: How an image becomes a square: `backbone` as in the training of the image tower, `crop` crops the
            center, `stretch` stretches the complete image, `native` keeps its shape and pads it (NaFlex models only).
        batch_size: The number of samples per batch on each device.
        num_workers: The number of processes that read images; 0 reads them in the main process.

    Attributes:
        data_set: The name of the data set, as papers write it.
        definitions: The definition of each metric, by the name of the metric.
        key: The name under which the metrics are logged: data set and split in lower case, such as `coco_5k`.
        per_class: One row per class, with the name of the class and its metrics, after they are computed; empty for
            suites without classes. `Results` writes the rows to a separate file.
    """

    data_set: ClassVar[str]
    definitions: ClassVar[dict[str, str]]

    def __init__(
        self,
        root: str,
        images: str | None = None,
        image_size: int | None = None,
        resize_mode: ResizeOption = "backbone",
        batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        require_image_size(image_size)
        self.root = Path(root)
        self._images = None if images is None else Path(images)
        self.image_size = image_size
        self.resize_mode = resize_mode
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.per_class: list[dict[str, str | float]] = []
        self._read: Dataset[Any] | None = None

    @property
    @abstractmethod
    def key(self) -> str:
        """The name under which the metrics are logged."""

    @abstractmethod
    def read(self, framing: Framing) -> Dataset[Any]:
        """Read and check the annotations. An image is read when its sample is read.

        Args:
            framing: How an image becomes the model's input.

        Raises:
            UserError: If a file is missing or not as published. The message names the file, and the key or row.
        """

    @abstractmethod
    def collate(self, samples: Sequence[Any]) -> SuiteBatch:
        """Combine samples of the data set into one batch."""

    @abstractmethod
    def evaluation(self, module: AlignmentModule) -> SuiteEvaluation:
        """Return an empty evaluation for one pass over the samples."""

    def suite(self, split: str) -> Suite:
        """Return this suite, which is the only one."""
        return self

    def protocol(self) -> dict[str, Any]:
        """The options that change what is measured, by name: all except paths, batch sizes and numbers of processes."""
        left_out = {"root", "images", "batch_size", "num_workers"}
        return {name: value for name, value in self.spec["init_args"].items() if name not in left_out}

    def setup(self, stage: str) -> None:
        """Read and check the annotations.

        Raises:
            UserError: If the stage is neither `test` nor `validate`, or if `read` raises it.
        """
        if stage not in ("test", "validate"):
            name = type(self).__name__
            raise UserError(
                f"{name} is an evaluation suite and cannot be used to {stage.lower()}: run `patchword test`"
            )
        self._read = self.read(self.framing())

    def framing(self) -> Framing:
        """How an image becomes the model's input, as `image_size` and `resize_mode` specify."""
        encoder: Any = self.trainer.lightning_module.encoder  # type: ignore[union-attr]
        return Framing(
            encoder.preprocessing.with_resize_mode(self.resize_mode), self.image_size or encoder.image_size[0]
        )

    def image_folder(self, *names: str) -> Path:
        """Return the folder of the images: the first that exists, or else the published one in `root`.

        The option `images` replaces `root`. It may also be the folder with the images itself.

        Args:
            names: The path of the published folder, and other paths under which the folder is often kept. Each is also
                found in a folder `images/`.
        """
        places = [place for name in names for place in (name, f"images/{name}")]
        base = self.root if self._images is None else self._images
        nowhere = base / names[0] if self._images is None else base
        return next((base / place for place in places if (base / place).is_dir()), nowhere)

    def test_dataloader(self) -> dict[str, DataLoader[Any]]:
        """A loader of the samples in their order, under the suite's key."""
        assert self._read is not None, "Lightning calls setup first"
        return {self.key: evaluation_loader(self._read, self.batch_size, self.num_workers, self.collate)}


class SuiteList(Configurable, SuiteData):
    """Several suites in one run of `patchword test`.

    Args:
        suites: The suites. Their keys must differ.

    Raises:
        UserError: If there is no suite, or if two suites have the same key.
    """

    def __init__(self, suites: list[Suite]) -> None:
        super().__init__()
        names = [suite.key for suite in suites]
        if not suites or len({*names}) < len(names):
            raise UserError(
                f"suites must be a list of one or more suites with different keys, but the keys are {names}"
            )
        self.suites = dict(zip(names, suites, strict=True))

    def suite(self, split: str) -> Suite:
        """Return the suite with this key."""
        return self.suites[split]

    def setup(self, stage: str) -> None:
        """Read and check the annotations of all suites before the first suite is measured."""
        for suite in self.suites.values():
            suite.trainer = self.trainer
            suite.setup(stage)

    def test_dataloader(self) -> dict[str, DataLoader[Any]]:
        """A loader of the samples of each suite, under the suite's key."""
        return {name: loader for suite in self.suites.values() for name, loader in suite.test_dataloader().items()}
