"""Zero-shot segmentation: each pixel gets the class whose name fits it best."""

from __future__ import annotations

import zlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from patchword.data.loader import evaluation_loader
from patchword.errors import InputError
from patchword.features import Images
from patchword.maps import Queries, phrase_maps
from patchword.metrics.per_sample import PerSample
from patchword.metrics.segmentation import IGNORED, NO_CLASS, areas, class_ious, expected_areas, segmentation
from patchword.ops import normalize
from patchword.suites.base import Suite, SuiteBatch, SuiteEvaluation
from patchword.suites.files import Framing, checksum, load_image
from patchword.suites.prompts import ClassTexts, embed_classes, read_lines, read_templates, split_names
from patchword.suites.windows import Canvas, Upsampling, label_pixels, one_view, sliding_windows

if TYPE_CHECKING:
    from patchword.module import AlignmentModule

Source = Literal["pooled", "align"]
Candidates = Literal["dataset", "image"]

_BLOCK = 256  # prompts at a time: a prompt's copy of a window's patches is what takes memory


@dataclass
class SegmentationBatch(SuiteBatch):
    """One image.

    Attributes:
        windows: Its windows.
        canvas: Where they lie.
        truth: The class of each pixel, `NO_CLASS` or `IGNORED`.
    """

    windows: UInt8[Tensor, "W 3 h w"]
    canvas: Canvas
    truth: UInt8[Tensor, "H W2"]


@dataclass
class Labelling:
    """How the patches of an image become labels of its pixels.

    Args:
        map: Which scores patches have: their cosine with the class's `pooled` text embedding, or the objective's own
            map of the words of its name (`align`), mean over its tokens.
        prompts: `label` (the name alone), `photo` ("a photo of a {}."), `clip` (CLIP's ensemble of 80), or a text file
            with a template on each line, whose `{}` the name replaces.
        class_names: A text file with the names of a class on each line, between commas; null for the published ones.
        candidates: Classes that a pixel can get: all of the data set (`dataset`), or those in the image's truth
            (`image`).
        upsampling: From patches to pixels: scores `bilinear` and then the best class, or that of the `nearest` patch.
        short_side: The image is resized to this shorter side and covered with windows; null for one view of all of it.
        stride: Pixels from one window to the next; null for half a window.

    Raises:
        InputError: If the file of templates cannot be read.
    """

    map: Source = "pooled"
    prompts: str = "clip"
    class_names: str | None = None
    candidates: Candidates = "dataset"
    upsampling: Upsampling = "bilinear"
    short_side: int | None = 448
    stride: int | None = None

    def __post_init__(self) -> None:
        self.templates = read_templates(self.prompts)


class Segmentation(Suite):
    """Zero-shot segmentation; each data set is a subclass.

    Args:
        root: The folder of the data set.
        labelling: How patches become labels of pixels.
        image_size: Height and width of a window in pixels; null for what the encoder takes.
        batch_size: Windows that are encoded at a time.
        num_workers: Processes that read images; 0 reads them in the main process.

    Raises:
        InputError: If the file of class names does not fit the data set.

    Attributes:
        names_file: The shipped file of class names.
        background: What pixels are of which the truth says no class: they do not count (`ignore`), every prediction on
            them is wrong (`count`), or they are a class more, which a pixel gets whose best score is below `threshold`.
        threshold: See `background`.
        temperature: The threshold compares with the softmax of scores / temperature; None for the score itself.
    """

    names_file: ClassVar[str]
    background: Literal["ignore", "count", "threshold"] = "ignore"
    threshold: float = 0.0
    temperature: float | None = None
    definitions = {  # noqa: RUF012 - a ClassVar
        "miou": "Intersection over union of each class, both summed over all images; mean over the classes that "
        "are true or predicted anywhere. Ignored pixels are left out.",
        "miou_per_image": "Intersection over union of each class in one image; mean over the classes of its truth, "
        "then over images. Ignored pixels are left out.",
        "pixel_accuracy": "Share of all pixels with a true class, of all images together, that get this class.",
    }

    def __init__(
        self,
        root: str,
        labelling: Labelling = Labelling(),  # noqa: B008 - never modified
        image_size: int | None = None,
        batch_size: int = 8,
        num_workers: int = 0,
    ) -> None:
        super().__init__(root, image_size, "stretch", batch_size, num_workers)
        self.labelling = labelling
        own = Path(__file__).parent / self.names_file
        self.names = [split_names(names) for _, names in read_lines(own)]
        if labelling.class_names is not None:
            self.names = _own_names(Path(labelling.class_names), len(self.names))

    @property
    def classes(self) -> int:
        """The number of classes that count, background included where it is one."""
        return len(self.names) + (self.background == "threshold")

    @abstractmethod
    def files(self) -> list[tuple[Path, Path]]:
        """Each image with its map of labels.

        Raises:
            InputError: If a file or folder of the published layout is missing.
        """

    @abstractmethod
    def labels(self) -> UInt8[np.ndarray, " 256"]:
        """What each value of a published label map is: a class from 0 on, `NO_CLASS` or `IGNORED` (`label_table`)."""

    def read(self, framing: Framing) -> Dataset[SegmentationBatch]:
        """List the images."""
        return SegmentedImages(self, framing)

    def collate(self, samples: Sequence[SegmentationBatch]) -> SegmentationBatch:
        """The one image."""
        (sample,) = samples
        return sample

    def test_dataloader(self) -> dict[str, DataLoader[Any]]:
        """The images one by one, since they differ in size and number of windows."""
        assert self._read is not None, "Lightning calls setup first"
        return {self.key: evaluation_loader(self._read, 1, self.num_workers, self.collate)}

    def evaluation(self, module: AlignmentModule) -> SegmentationEvaluation:
        """Empty statistics, with the embedded prompts.

        Raises:
            InputError: If a name has no token of which `align` could make a map.
        """
        texts = embed_classes(module, self.names, self.labelling.templates, tokens=self.labelling.map == "align")
        if self.labelling.map == "align" and not texts.query.any(-1).all():
            number = int(texts.owner[texts.query.any(-1).int().argmin()])
            raise InputError(f"the tokenizer leaves no token of the class {self.names[number][0]!r}: name it otherwise")
        return SegmentationEvaluation(module, self, texts)


class SegmentedImages(Dataset[SegmentationBatch]):
    """The images of a suite, cut into windows, with their true labels.

    Args:
        suite: The suite.
        framing: What the model sees of a window.
    """

    def __init__(self, suite: Segmentation, framing: Framing) -> None:
        # Not the suite itself: it holds the trainer, which worker processes must not get.
        self.key, self.data_set, self.names, self.labelling = suite.key, suite.data_set, suite.names, suite.labelling
        self.framing = framing
        self.files = suite.files()
        self.labels = suite.labels()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> SegmentationBatch:
        """One image.

        Raises:
            InputError: If the image or its labels cannot be read, or do not fit together.
        """
        image_path, label_path = self.files[index]
        image, of_image = load_image(image_path, self.key, upright=False)
        truth, of_truth = _read_labels(label_path)
        if truth.shape != image.size[::-1]:
            raise InputError(
                f"{label_path} has {truth.shape[1]} x {truth.shape[0]} pixels, and its image {image_path} has "
                f"{image.width} x {image.height}"
            )
        known = self.labels[truth]
        if (known == _UNKNOWN).any():
            value = truth[known == _UNKNOWN][0]
            raise InputError(f"{label_path} has the value {value}, which is no label of {self.data_set}")
        how = self.labelling
        if how.short_side is None:
            canvas, views = one_view(*image.size, self.framing)
        else:
            stride = self.framing.size // 2 if how.stride is None else how.stride
            canvas, views = sliding_windows(*image.size, self.framing, how.short_side, stride)
        return SegmentationBatch(
            torch.tensor([index]),
            torch.tensor([checksum(of_image, of_truth, *map(",".join, self.names))]),
            torch.stack([view.image(image) for view in views]),
            canvas,
            torch.from_numpy(known),
        )


_UNKNOWN = 253


def label_table(classes: dict[int, int], others: dict[int, int]) -> UInt8[np.ndarray, " 256"]:
    """What `Segmentation.labels` returns: 253 for a value that is not allowed.

    Args:
        classes: The class of each value.
        others: The values that are `NO_CLASS` or `IGNORED`.
    """
    table = np.full(256, _UNKNOWN, dtype=np.uint8)
    for value, label in (classes | others).items():
        table[value] = label
    return table


class SegmentationEvaluation(SuiteEvaluation):
    """Collects, for each image and class, the pixels that are predicted, true, and both.

    Args:
        module: Encodes windows.
        suite: Says how patches become labels of pixels.
        texts: The prompts.
    """

    def __init__(self, module: AlignmentModule, suite: Segmentation, texts: ClassTexts) -> None:
        super().__init__()
        self.module = module
        self.suite = suite
        self.texts = texts
        self.embeddings = texts.embeddings()
        self.rows = PerSample(3 * suite.classes + 1)

    def update(self, batch: SegmentationBatch) -> None:
        """Label the pixels of an image."""
        predicted = self.predict(batch)
        found = areas(predicted, batch.truth, self.suite.classes)
        pixels = (batch.truth != IGNORED).sum()
        self.rows.update(batch.ids, torch.cat([found.flatten(), pixels[None]])[None])

    def predict(self, batch: SegmentationBatch) -> UInt8[Tensor, "H W2"]:
        """The class of each pixel, `NO_CLASS` where the best two tie."""
        suite = self.suite
        parts = [self.module.encode_images(part) for part in batch.windows.split(suite.batch_size)]
        grid = parts[0].grid
        scores = torch.cat([self.patch_scores(part) for part in parts])
        names = torch.arange(len(suite.names), device=scores.device)
        if suite.labelling.candidates == "image":
            names = names[torch.isin(names, batch.truth)]
        size = (batch.truth.shape[0], batch.truth.shape[1])
        if not len(names):
            return torch.full_like(batch.truth, len(suite.names) if suite.background == "threshold" else NO_CLASS)
        label, score = label_pixels(
            scores[..., names], grid, batch.canvas, size, suite.labelling.upsampling, suite.temperature
        )
        decided = label != NO_CLASS
        label[decided] = names.to(torch.uint8)[label[decided].long()]
        if suite.background == "threshold":
            label[score < suite.threshold] = len(suite.names)
        return label

    def patch_scores(self, images: Images) -> Float[Tensor, "W P C"]:
        """The score of each patch with each class."""
        if self.suite.labelling.map == "pooled":
            with torch.autocast(images.patches.device.type, enabled=False):
                return normalize(images.patches.float()) @ self.embeddings.T
        return torch.stack([self._aligned(images[i : i + 1]) for i in range(len(images))])

    def _aligned(self, image: Images) -> Float[Tensor, "P C"]:
        """The objective's own maps of one window: the mean over the tokens of a name, and over a class's prompts."""
        total = torch.zeros(len(self.suite.names), image.patches.shape[1], device=image.patches.device)
        for start in range(0, len(self.texts.texts), _BLOCK):
            texts, query = self.texts.texts[start : start + _BLOCK], self.texts.query[start : start + _BLOCK]
            same = torch.zeros(len(texts), dtype=torch.long, device=total.device)
            asked = Queries(image[same], texts, query, same[:, None].expand(-1, 2))
            total += self.texts.sum(phrase_maps("align", self.module.objective, asked).float(), start)
        return (total / self.texts.owner.bincount()[:, None]).T

    def compute(self) -> dict[str, float]:
        """Both mIoUs and pixel accuracy, with chance; numbers of images and classes, and of prompts that were cut."""
        rows = self.rows.compute()
        common, predicted, truth = rows[:, :-1].unflatten(-1, (3, self.suite.classes)).unbind(1)
        candidates = (
            truth > 0 if self.suite.labelling.candidates == "image" else torch.ones_like(truth, dtype=torch.bool)
        )
        if self.suite.background == "threshold":
            candidates[:, -1] = True
        self.suite.per_class = self._per_class(common, predicted, truth)
        guess = segmentation(*expected_areas(truth, rows[:, -1], candidates), truth)
        result = segmentation(common, predicted, truth)
        result |= {f"chance_{name}": value for name, value in guess.items()}
        counts = {"images": len(rows), "classes": self.suite.classes, "cut_prompts": self.texts.cut}
        return result | {name: float(count) for name, count in counts.items()}

    def _per_class(
        self, common: Float[Tensor, "N C"], predicted: Float[Tensor, "N C"], truth: Float[Tensor, "N C"]
    ) -> list[dict[str, str | float]]:
        """For each class IoU and pixel accuracy over all images, and in how many images and pixels it is true."""
        names = [", ".join(names) for names in self.suite.names] + ["background"]
        numbers = {
            "iou": class_ious(common, predicted, truth),
            "pixel_accuracy": common.sum(0) / truth.sum(0),
            "images": (truth > 0).sum(0),
            "true_pixels": truth.sum(0),
            "predicted_pixels": predicted.sum(0),
        }
        columns = {name: column.tolist() for name, column in numbers.items()}
        return [
            {"class": names[c], **{name: column[c] for name, column in columns.items()}}
            for c in range(self.suite.classes)
        ]


def _own_names(path: Path, number: int) -> list[list[str]]:
    if not path.is_file():
        raise InputError(f"data.class_names: there is no file {path}")
    names = [split_names(line) for _, line in read_lines(path)]
    if len(names) != number:
        raise InputError(f"{path} must have the names of {number} classes, one on each line, not of {len(names)}")
    return names


def _read_labels(path: Path) -> tuple[UInt8[np.ndarray, "H W2"], int]:
    """The values of a label map, and a checksum of them."""
    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L"):
                raise InputError(
                    f"{path} must hold one number of 8 bits for each pixel (a palette or grey PNG), and its mode is "
                    f"{image.mode}"
                )
            values = np.array(image)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"there is no label map {path}") from error
    except Exception as error:  # of a broken file Pillow may make nearly any exception
        raise InputError(f"the label map {path} cannot be read ({error})") from error
    return values, zlib.crc32(values.tobytes())
