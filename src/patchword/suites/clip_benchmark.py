"""The zero-shot classification sets of CLIP_benchmark (LAION), in the files and with the prompts of that package."""

from __future__ import annotations

import zlib
from typing import Any, Literal

import torch
from torch.utils.data import Dataset

from patchword.data.pixels import rgb
from patchword.errors import UserError
from patchword.suites.classification import Classification, ClassificationBatch, Ensemble
from patchword.suites.files import Framing, checksum

# Sets with random access that need no download if their folder exists. Not among them: sets in TensorFlow's format
# (`vtab/`, `tfds/`), streams of tar files (`wds/`), and sets with several labels.
Name = Literal[
    "caltech101",
    "cars",
    "cifar10",
    "cifar100",
    "country211",
    "dtd",
    "eurosat",
    "fer2013",
    "fgvc_aircraft",
    "flowers",
    "food101",
    "gtsrb",
    "imagenet-a",
    "imagenet-o",
    "imagenet-r",
    "imagenet1k-unverified",
    "imagenet_sketch",
    "mnist",
    "pcam",
    "pets",
    "renderedsst2",
    "stl10",
    "sun397",
    "voc2007",
]


class ClipBenchmark(Classification):
    """Zero-shot classification of a data set that CLIP_benchmark (`clip-benchmark`) reads.

    Names of classes and prompts are those of that package. Nothing is downloaded.

    Args:
        root: The folder of the data set, as the package (mostly torchvision) expects it.
        dataset: The name of the data set in CLIP_benchmark.
        split: The split; the package says which ones a data set has, and ignores it where there are none.
        prompts: null uses the package's prompts of the data set; for others, see `Classification`.
        ensemble: See `Classification`.
        options: Options of all suites except `images`; see `Suite`.

    Raises:
        UserError: If the templates cannot be read.
    """

    def __init__(
        self,
        root: str,
        dataset: Name = "pets",
        split: str = "test",
        prompts: str | None = None,
        ensemble: Ensemble = "embedding",
        **options: Any,
    ) -> None:
        own = "label" if prompts is None else prompts
        super().__init__(
            root, name=f"clip_benchmark_{dataset}", class_names=None, prompts=own, ensemble=ensemble, **options
        )
        self.dataset = dataset
        self.split = split
        self.prompts = prompts
        self.data_set = f"{dataset}, {split} (of CLIP_benchmark)"  # type: ignore[misc]

    @property
    def key(self) -> str:
        """`clip_benchmark_`, the data set and the split, such as `clip_benchmark_pets_test`."""
        return f"{super().key}_{self.split}"

    def read(self, framing: Framing) -> Dataset[ClassificationBatch]:
        """Let the package list the images, and take its names and prompts.

        Raises:
            UserError: If the package is not installed, or cannot read the data set.
        """
        try:
            from clip_benchmark.datasets.builder import build_dataset
        except ImportError as error:
            raise UserError(
                f"data ClipBenchmark needs CLIP_benchmark ({error}): pip install 'patchword[clip-benchmark]'"
            ) from error
        if not self.root.is_dir():
            raise UserError(f"there is no folder {self.root}: set data.root to the folder of {self.dataset}")
        try:
            data = build_dataset(self.dataset, root=str(self.root), split=self.split, download=False)
        except Exception as error:  # torchvision and the package raise many kinds of exceptions
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"CLIP_benchmark cannot read {self.dataset}, {self.split}, in {self.root} ({reason[:200]}): use the "
                "files that it expects"
            ) from error
        self.names = [[name] for name in data.classes]
        if self.prompts is None:
            self.templates = [template.replace("{c}", "{}") for template in data.templates]
        return LabeledImages(data, self.names, framing)


class LabeledImages(Dataset[ClassificationBatch]):
    """The images of a data set of pairs of an image and a label.

    Args:
        data: Pairs of an image of Pillow and the number of its class.
        names: The names of each class.
        framing: How an image becomes the model's input.
    """

    def __init__(self, data: Any, names: list[list[str]], framing: Framing) -> None:
        self.data, self.names, self.framing = data, names, framing

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> ClassificationBatch:
        """Return a batch of one image. The checksum is of its pixels, because it may have no file of its own.

        Raises:
            UserError: If the image cannot be read.
        """
        try:
            image, label = self.data[index]
            image, label = rgb(image), int(label)
        except Exception as error:  # Pillow raises many kinds of exceptions for broken files
            raise UserError(f"image {index} of {type(self.data).__name__} cannot be read ({error})") from error
        total = checksum(zlib.crc32(image.tobytes()), *self.names[label])
        pixels = self.framing.pixels(image)[None]
        return ClassificationBatch(torch.tensor([index]), torch.tensor([total]), pixels, torch.tensor([label]))
