"""Zero-shot classification: each image goes to the class whose name fits it best."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from patchword.errors import InputError
from patchword.features import Texts
from patchword.metrics.classification import KS, class_accuracies, class_ranks, classification
from patchword.metrics.per_sample import PerSample
from patchword.suites.base import Suite, SuiteBatch, SuiteEvaluation
from patchword.suites.files import Framing, checksum, load_image, read_json
from patchword.suites.prompts import ClassTexts, embed_classes, read_lines, read_templates, split_names

if TYPE_CHECKING:
    from patchword.module import AlignmentModule

Ensemble = Literal["embedding", "score"]

_BLOCK = 1024  # prompts scored at a time


@dataclass
class ClassificationBatch(SuiteBatch):
    """Images and their classes.

    Attributes:
        images: RGB pixels.
        labels: The class of each image.
    """

    images: UInt8[Tensor, "I 3 H W"]
    labels: Int[Tensor, " I"]


class Classification(Suite):
    """Zero-shot classification of a folder with a folder of images for each class, as ImageNet's `val` often comes.

    Args:
        root: The folder of class folders. All of its folders are candidates for each image.
        name: The name of the data set and split, under which the numbers are logged.
        class_names: Names of the classes: null for the folders' own names, with spaces for underscores; `imagenet` for
            those of CLIP's evaluation, by WordNet id or, as ImageNetV2 has it, by number from 0; a JSON file {folder:
            name or list of names}; or a text file with folder, space, and names that commas separate, on each line.
        prompts: `label` (the name alone, as SPARC), `photo` ("a photo of a {}."), `clip` (CLIP's ensemble of 80), or a
            text file with a template on each line, whose `{}` the name replaces.
        ensemble: What is averaged over the prompts of a class: their normalised `embedding` (CLIP), or their `score`
            with the image (FILIP). An objective that scores with patches and tokens needs `score`.
        options: What every suite takes; see `Suite`.

    Raises:
        InputError: If the name is empty, or the templates cannot be read.
    """

    data_set = "a folder of class folders"
    definitions = {  # noqa: RUF012 - a ClassVar
        "accuracy@1": "Share of images whose own class has the strictly highest score of all classes.",
        "accuracy@5": "Share of images whose own class is among the 5 with the highest scores; ties count against it.",
        "mean_class_recall": "Accuracy@1 within each class, its mean over the classes that have images.",
    }

    def __init__(
        self,
        root: str,
        name: str = "classification",
        class_names: str | None = None,
        prompts: str = "clip",
        ensemble: Ensemble = "embedding",
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        if not re.fullmatch(r"[\w.+-]+", name):
            raise InputError(f"data.name must be letters, digits, and ._+-, not {name!r}")
        self._key = name.lower()
        self.class_names = class_names
        self.templates = read_templates(prompts)
        self.ensemble = ensemble
        self.names: list[list[str]] = []

    @property
    def key(self) -> str:
        """The name."""
        return self._key

    def read(self, framing: Framing) -> Dataset[ClassificationBatch]:
        """List the images and name their classes."""
        if not self.root.is_dir():
            raise InputError(f"there is no folder {self.root}: give the folder of class folders as data.root")
        folders = sorted(path for path in self.root.iterdir() if path.is_dir() and not path.name.startswith("."))
        if len(folders) < 2:
            raise InputError(
                f"{self.root} holds {len(folders)} folder(s): it must hold one for each class, two or more"
            )
        known = _names(self.class_names)
        self.names = [known[folder.name] if folder.name in known else self._own_name(folder) for folder in folders]
        suffixes = Image.registered_extensions()
        files = [
            (path, label)
            for label, folder in enumerate(folders)
            for path in sorted(folder.iterdir())
            if path.suffix.lower() in suffixes
        ]
        if not files:
            raise InputError(
                f"there is no image in the folders of {self.root}: each class needs a folder with its images"
            )
        return ClassFolders(files, self.names, framing)

    def _own_name(self, folder: Path) -> list[str]:
        if self.class_names is not None:
            raise InputError(f"{self.class_names} has no name for the folder {folder}: add it")
        if re.fullmatch(r"n\d{8}", folder.name):
            raise InputError(f"{folder} is a WordNet id and no name: set data.class_names to imagenet, or to a file")
        return [folder.name.replace("_", " ")]

    def collate(self, samples: Sequence[ClassificationBatch]) -> ClassificationBatch:
        """One batch of batches of one."""
        return ClassificationBatch(
            *(
                torch.cat([getattr(sample, field) for sample in samples])
                for field in ("ids", "sums", "images", "labels")
            )
        )

    def evaluation(self, module: AlignmentModule) -> ClassificationEvaluation:
        """Empty statistics, with the embedded prompts.

        Raises:
            InputError: If several prompts are to be averaged as embeddings for an objective that scores with tokens.
        """
        local = module.objective.local_score
        texts = embed_classes(module, self.names, self.templates, tokens=local)
        if local and self.ensemble == "embedding" and not texts.single:
            raise InputError(
                f"{type(module.objective).__name__} scores with patches and tokens, and prompts have no tokens in "
                "common to average: set data.ensemble to score, or data.prompts to label or photo"
            )
        return ClassificationEvaluation(module, self, texts)


class ClassFolders(Dataset[ClassificationBatch]):
    """The images of class folders.

    Args:
        files: Each image with its class.
        names: The names of the classes.
        framing: What the model sees of an image.
    """

    def __init__(self, files: list[tuple[Path, int]], names: list[list[str]], framing: Framing) -> None:
        self.files, self.names, self.framing = files, names, framing

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> ClassificationBatch:
        """A batch of one.

        Raises:
            InputError: If the image cannot be read.
        """
        path, label = self.files[index]
        image, content = load_image(path, f"class {self.names[label][0]!r}")
        total = checksum(content, *self.names[label])
        pixels = self.framing.pixels(image)[None]
        return ClassificationBatch(torch.tensor([index]), torch.tensor([total]), pixels, torch.tensor([label]))


class ClassificationEvaluation(SuiteEvaluation):
    """Collects the rank of each image's class.

    Args:
        module: Encodes and scores.
        suite: Names the classes, and says what is averaged over the prompts of each.
        texts: The prompts.
    """

    def __init__(self, module: AlignmentModule, suite: Classification, texts: ClassTexts) -> None:
        super().__init__()
        self.module = module
        self.suite = suite
        self.cut = texts.cut
        self.classes = int(texts.owner[-1]) + 1
        if suite.ensemble == "embedding" and not texts.single:
            none = texts.texts.pooled.new_zeros(self.classes, 0, texts.texts.pooled.shape[1])
            one = Texts(texts.embeddings(), none, none.new_zeros(self.classes, 0, dtype=torch.bool))
            owner = torch.arange(self.classes, device=none.device)
            texts = ClassTexts(one, owner, one.mask, texts.cut)
        self.texts = texts
        self.rows = PerSample(2)

    def update(self, batch: ClassificationBatch) -> None:
        """Rank the classes for a batch of images."""
        rank = class_ranks(self.scores(batch.images), batch.labels)
        self.rows.update(batch.ids, torch.stack([batch.labels, rank], -1).double())

    def scores(self, pixels: UInt8[Tensor, "I 3 H W"]) -> Float[Tensor, "I C"]:
        """The score of each image with each class: the mean over its prompts."""
        images = self.module.encode_images(pixels)
        total = torch.zeros(self.classes, len(images), device=pixels.device)
        for start in range(0, len(self.texts.texts), _BLOCK):
            of_prompts = self.module.objective.score(images, self.texts.texts[start : start + _BLOCK])
            total += self.texts.sum(of_prompts.float().mT.contiguous(), start)
        return (total / self.texts.owner.bincount()[:, None]).mT

    def compute(self) -> dict[str, float]:
        """Accuracies with chance; numbers of images, classes, and prompts that the tokenizer cut."""
        label, rank = self.rows.compute().long().unbind(-1)
        images = label.bincount(minlength=self.classes).tolist()
        accuracies = {f"accuracy@{k}": class_accuracies(label, rank, self.classes, k).tolist() for k in KS}
        self.suite.per_class = [
            {"class": ", ".join(names), **{name: of[c] for name, of in accuracies.items()}, "images": images[c]}
            for c, names in enumerate(self.suite.names)
        ]
        return classification(label, rank, self.classes) | {"cut_prompts": float(self.cut)}


def _names(source: str | None) -> dict[str, list[str]]:
    """The names of each folder."""
    if source is None:
        return {}
    path = Path(__file__).parent / "imagenet_classes.txt" if source == "imagenet" else Path(source)
    if not path.is_file():
        raise InputError(f"data.class_names must be imagenet or a file of names, and there is no file {source}")
    found = {}
    if path.suffix == ".json":
        content = read_json(path)
        if not isinstance(content, dict):
            raise InputError(f'{path} must hold an object of folders and their names, such as {{"n01440764": "tench"}}')
        for folder, names in content.items():
            names = [names] if isinstance(names, str) else names
            if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
                raise InputError(f"{path}: {folder} must have a name or a list of names, not {str(names)[:60]!r}")
            found[folder] = names
        return found
    for number, line in read_lines(path):
        folder, _, names = line.replace("\t", " ").partition(" ")
        found[folder] = split_names(names)
        if not found[folder]:
            raise InputError(f"{path}, line {number}: must be a folder, a space, and its names, not {line!r}")
    numbered = {str(number): names for number, names in enumerate(found.values())} if source == "imagenet" else {}
    return found | numbered
