"""Zero-shot classification: each image is assigned the class whose name has the highest score."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from patchword.data.pixels import is_image_name
from patchword.errors import UserError
from patchword.features import Texts
from patchword.files.published import read_json, read_lines
from patchword.metrics.classification import KS, class_accuracies, class_ranks, classification
from patchword.metrics.per_sample import PerSample
from patchword.suites.base import Suite, SuiteBatch, SuiteEvaluation
from patchword.suites.files import Framing, checksum, load_image
from patchword.suites.prompts import ClassTexts, embed_classes, read_templates, split_names

if TYPE_CHECKING:
    from patchword.module import AlignmentModule

Ensemble = Literal["embedding", "score"]

_BLOCK = 1024  # number of prompts that are scored at a time


@dataclass
class ClassificationBatch(SuiteBatch):
    """Images and their classes.

    Attributes:
        images: The RGB pixels of the images; see `Batch`.
        labels: The class of each image.
    """

    images: UInt8[Tensor, "I _ H W"]
    labels: Int[Tensor, " I"]


class Classification(Suite):
    """Zero-shot classification of a folder with one folder of images per class, such as ImageNet's `val`.

    Args:
        root: The folder of the class folders. All class folders are candidates for each image. The images of a class
            are those in its folder and in all subfolders.
        name: The name of the data set and split, under which the metrics are logged.
        class_names: The names of the classes. null uses the names of the folders, with spaces instead of underscores.
            `imagenet` uses the names of CLIP's evaluation, by WordNet id or, as in ImageNetV2, by number from 0. A JSON
            file maps each folder to a name or to a list of names. A text file has one line per class: the folder, a
            space, and one or more names separated by commas.
        prompts: `label` (the name only, as in SPARC), `photo` ("a photo of a {}."), `clip` (CLIP's ensemble of 80), or
            a text file with one template per line. The name replaces `{}` in the template.
        ensemble: What is averaged over the prompts of a class: their normalized embeddings (`embedding`, as in CLIP) or
            their scores with the image (`score`, as in FILIP). Objectives that score with patches and tokens need
            `score`.
        options: Options of all suites except `images`; see `Suite`.

    Raises:
        UserError: If the name has invalid characters, or if the templates cannot be read.
    """

    data_set = "a folder of class folders"
    definitions = {  # noqa: RUF012 - a ClassVar
        "accuracy@1": "Share of images whose true class has the strictly highest score of all classes.",
        "accuracy@5": "Share of images whose true class is among the 5 classes with the highest scores; a tie counts "
        "as an error.",
        "mean_class_recall": "Accuracy@1 within each class, averaged over the classes that have images.",
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
        super().__init__(root, images=None, **options)
        if not re.fullmatch(r"[\w.+-]+", name):
            raise UserError(f"data.name must consist of letters, digits and the characters ._+-, but it is {name!r}")
        self._key = name.lower()
        self.class_names = class_names
        self.templates = read_templates(prompts)
        self.ensemble = ensemble
        self.names: list[list[str]] = []

    @property
    def key(self) -> str:
        """The name of the data set in lower case."""
        return self._key

    def read(self, framing: Framing) -> Dataset[ClassificationBatch]:
        """List the images and determine the names of their classes."""
        if not self.root.is_dir():
            raise UserError(f"there is no folder {self.root}: set data.root to the folder of the class folders")
        folders = sorted(path for path in self.root.iterdir() if path.is_dir() and not path.name.startswith("."))
        if len(folders) < 2:
            raise UserError(
                f"{self.root} has {len(folders)} folder(s): it must have one folder per class, and two or more classes"
            )
        known = _names(self.class_names)
        self.names = [known[folder.name] if folder.name in known else self._own_name(folder) for folder in folders]
        files = [
            (path, label)
            for label, folder in enumerate(folders)
            for path in sorted(folder.rglob("*"))
            if is_image_name(path) and path.is_file()
        ]
        if not files:
            raise UserError(f"the folders in {self.root} have no images: put the images of each class into its folder")
        return ClassFolders(files, self.names, framing)

    def _own_name(self, folder: Path) -> list[str]:
        if self.class_names is not None:
            raise UserError(f"{self.class_names} has no name for the folder {folder}: add a name")
        if re.fullmatch(r"n\d{8}", folder.name):
            raise UserError(
                f"{folder} is a WordNet id, not a name: set data.class_names to imagenet or to a file of names"
            )
        return [folder.name.replace("_", " ")]

    def collate(self, samples: Sequence[ClassificationBatch]) -> ClassificationBatch:
        """Combine batches of one image into one batch."""
        fields = zip(*(vars(sample).values() for sample in samples), strict=True)
        return ClassificationBatch(*map(torch.cat, fields))

    def evaluation(self, module: AlignmentModule) -> ClassificationEvaluation:
        """Return an empty evaluation with the embedded prompts.

        Raises:
            UserError: If the embeddings of several prompts are to be averaged for an objective that scores with tokens.
        """
        local = module.objective.uses_local_features
        texts = embed_classes(module, self.names, self.templates, keep_tokens=local)
        if local and self.ensemble == "embedding" and not texts.single:
            raise UserError(
                f"{type(module.objective).__name__} scores with patches and tokens, and the tokens of several prompts "
                "cannot be averaged: set data.ensemble to score, or data.prompts to label or photo"
            )
        return ClassificationEvaluation(module, self, texts)


class ClassFolders(Dataset[ClassificationBatch]):
    """The images of class folders, from the path and the class of each image."""

    def __init__(self, files: list[tuple[Path, int]], names: list[list[str]], framing: Framing) -> None:
        self.files, self.names, self.framing = files, names, framing

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> ClassificationBatch:
        """Return a batch of one image."""
        path, label = self.files[index]
        image, content = load_image(path, f"class {self.names[label][0]!r}")
        total = checksum(content, *self.names[label])
        pixels = self.framing.pixels(image)[None]
        return ClassificationBatch(torch.tensor([index]), torch.tensor([total]), pixels, torch.tensor([label]))


class ClassificationEvaluation(SuiteEvaluation):
    """Collects the rank of each image's class."""

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

    def scores(self, pixels: UInt8[Tensor, "I _ H W"]) -> Float[Tensor, "I C"]:
        """The score of each image with each class: the mean over the prompts of the class."""
        images = self.module.encode_images(pixels)
        total = torch.zeros(self.classes, len(images), device=pixels.device)
        for start in range(0, len(self.texts.texts), _BLOCK):
            of_prompts = self.module.objective.score(images, self.texts.texts[start : start + _BLOCK])
            total += self.texts.sum(of_prompts.float().mT.contiguous(), start)
        return (total / self.texts.owner.bincount()[:, None]).mT

    def compute(self) -> dict[str, float]:
        """Accuracies with their chance levels, and the numbers of images, classes and truncated prompts."""
        label, rank = self.rows.compute().long().unbind(-1)
        images = label.bincount(minlength=self.classes).tolist()
        accuracies = {f"accuracy@{k}": class_accuracies(label, rank, self.classes, k).tolist() for k in KS}
        self.suite.per_class = [
            {"class": ", ".join(names), **{name: of[c] for name, of in accuracies.items()}, "images": images[c]}
            for c, names in enumerate(self.suite.names)
        ]
        return classification(label, rank, self.classes) | {"cut_prompts": float(self.cut)}


def _names(source: str | None) -> dict[str, list[str]]:
    """The names of the class of each folder."""
    if source is None:
        return {}
    path = Path(__file__).parent / "imagenet_classes.txt" if source == "imagenet" else Path(source)
    if not path.is_file():
        raise UserError(f"data.class_names must be imagenet or a file of names, but there is no file {source}")
    found = {}
    if path.suffix == ".json":
        content = read_json(path)
        if not isinstance(content, dict):
            raise UserError(
                f'{path} must be a JSON object that maps folders to names, such as {{"n01440764": "tench"}}'
            )
        for folder, names in content.items():
            names = [names] if isinstance(names, str) else names
            if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
                raise UserError(
                    f"{path}: the value of {folder} must be a name or a list of names, not {str(names)[:60]!r}"
                )
            found[folder] = names
        return found
    for number, line in read_lines(path):
        folder, _, names = line.replace("\t", " ").partition(" ")
        found[folder] = split_names(names)
        if not found[folder]:
            raise UserError(f"{path}, line {number}: must have the form 'folder name, other name', not {line!r}")
    numbered = {str(number): names for number, names in enumerate(found.values())} if source == "imagenet" else {}
    return found | numbered
