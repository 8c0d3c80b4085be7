"""Zero-shot segmentation: each pixel is assigned the class whose name has the highest score."""

from __future__ import annotations

import re
import zlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from patchword.data.loader import evaluation_loader
from patchword.data.pixels import open_image
from patchword.errors import UserError
from patchword.features import Images
from patchword.files.published import read_lines
from patchword.maps.phrases import Queries, phrase_maps
from patchword.metrics.per_sample import PerSample
from patchword.metrics.position_priors import GRID
from patchword.metrics.segmentation import (
    IGNORED,
    NO_CLASS,
    areas,
    class_ious,
    expected_areas,
    mean_masks,
    segmentation,
)
from patchword.ops import normalize
from patchword.suites.base import Suite, SuiteBatch, SuiteEvaluation
from patchword.suites.files import Framing, checksum, load_image
from patchword.suites.pamr import Refinement
from patchword.suites.prompts import ClassTexts, embed_classes, read_templates, split_names
from patchword.suites.protocols import require_protocol
from patchword.suites.windows import Canvas, Upsampling, label_pixels, one_view, sliding_windows

if TYPE_CHECKING:
    from patchword.module import AlignmentModule

Source = Literal["pooled", "align"]
Candidates = Literal["dataset", "image"]

_BLOCK = 256  # number of prompts at a time; each prompt needs a copy of the window's patches


@dataclass
class SegmentationBatch(SuiteBatch):
    """A batch of one image.

    Attributes:
        windows: The windows that cover the image.
        canvas: The positions of the windows.
        truth: The class of each pixel, or `NO_CLASS` or `IGNORED`.
        image: The complete image, if scores are refined by its colors.
    """

    windows: UInt8[Tensor, "W 3 h w"]
    canvas: Canvas
    truth: UInt8[Tensor, "H W2"]
    image: UInt8[Tensor, "3 H W2"] | None = None


@dataclass
class Labeling:
    """How pixels are labeled from the patches of an image.

    Args:
        map: The scores of patches. `pooled` is the cosine with the class's pooled text embedding. `align` is the
            objective's own map of the class's name, averaged over the tokens of the name.
        prompts: `label` (the name only), `photo` ("a photo of a {}."), `clip` (CLIP's ensemble of 80), or a text file
            with one template per line. The name replaces `{}` in the template.
        class_names: A text file with the names of one class per line, separated by commas; null for the published
            names.
        candidates: The classes that a pixel can be assigned: all classes of the data set (`dataset`), or the classes in
            the image's ground truth (`image`).
        upsampling: How the scores of patches become scores of pixels, before the best class is chosen: `bilinear`
            interpolation, or the scores of the `nearest` patch.
        short_side: The length to which the shorter side of the image is resized before windows cover the image; null
            for one view of the complete image.
        stride: The distance between neighboring windows in pixels; null for half a window.
        several_names: The score of a class that has several names in `class_names`: that of the name with the highest
            score (`max`, as training-free methods mean their lists), or the score of the mean of the names' embeddings
            (`mean`, as in CLIP's ensemble). null refuses several names.
        pamr: How often the scores of pixels are refined by the colors of the image (PAMR); null leaves this out.
        protocol: `training_free` is the protocol of training-free methods such as NACLIP, `sparc` that of SPARC. The
            name is a part of the key under which metrics are logged, and the other options must be those of the
            protocol. null is for everything else; its keys end in `own`.

    Raises:
        UserError: If the file of templates cannot be read, or if `pamr` is less than 1.
    """

    map: Source = "pooled"
    prompts: str = "clip"
    class_names: str | None = None
    candidates: Candidates = "dataset"
    upsampling: Upsampling = "bilinear"
    short_side: int | None = 448
    stride: int | None = None
    several_names: Literal["mean", "max"] | None = None
    pamr: int | None = None
    protocol: Literal["training_free", "sparc"] | None = None

    def __post_init__(self) -> None:
        if self.pamr is not None and self.pamr < 1:
            raise UserError(f"data.labeling.pamr must be 1 or more, or null, not {self.pamr}")
        self.templates = read_templates(self.prompts)


class Segmentation(Suite):
    """Zero-shot segmentation; each data set is a subclass.

    Args:
        root: The folder of the data set.
        labeling: How pixels are labeled.
        images: The folder of the images, if it is not in `root`; null for the published folder in `root`.
        image_size: The height and width of a window in pixels; null for the image size of the encoder.
        batch_size: The number of windows that are encoded at a time.
        num_workers: The number of processes that read images; 0 reads them in the main process.

    Raises:
        UserError: If the file of class names does not match the data set.

    Attributes:
        name: The name of the data set and split, with which keys begin.
        names_file: The name of the file of class names in this package.
        training_free_side: The length of the shorter side in the protocol `training_free`; None for one view.
        background: How pixels without a class in the ground truth are treated. `ignore`: they do not count. `count`:
            every prediction on them is wrong. `threshold`: they are an additional class, which is predicted for pixels
            whose best score is below `threshold`.
        threshold: The threshold for `background`.
        temperature: Compare the threshold with the softmax of scores / temperature; None compares it with the score
            itself.
    """

    name: str
    names_file: ClassVar[str]
    training_free_side: ClassVar[int | None] = 336
    background: Literal["ignore", "count", "threshold"] = "ignore"
    threshold: float = 0.0
    temperature: float | None = None
    definitions = {  # noqa: RUF012 - a ClassVar
        "miou": "Intersection over union of each class, with both areas summed over all images; mean over the classes "
        "that are true or predicted in any image. Ignored pixels are left out.",
        "miou_per_image": "Intersection over union of each class in each image; mean over the classes in the image's "
        "ground truth, then over images. Ignored pixels are left out.",
        "pixel_accuracy": "Share of the pixels of all images that are assigned their true class. Pixels without a true "
        "class are left out.",
    }

    def __init__(
        self,
        root: str,
        labeling: Labeling = Labeling(),  # noqa: B008 - never modified
        images: str | None = None,
        image_size: int | None = None,
        batch_size: int = 8,
        num_workers: int = 0,
    ) -> None:
        super().__init__(root, images, image_size, "stretch", batch_size, num_workers)
        self.labeling = labeling
        own = Path(__file__).parent / self.names_file
        self.names = [split_names(names) for _, names in read_lines(own)]
        self.background_names: list[str] = []
        if labeling.class_names is not None:
            path = Path(labeling.class_names)
            self.background_names, self.names = _own_names(path, len(self.names), labeling.several_names)

    @property
    def key(self) -> str:
        """The name of the data set and the protocol, such as `voc21_val_training_free`."""
        return f"{self.name}_{self.labeling.protocol or 'own'}"

    def protocol(self) -> dict[str, Any]:
        """See `Suite.protocol`. Options of `labeling` that were added later are left out while they are null."""
        found = super().protocol()
        later = ("several_names", "pamr", "protocol")
        found["labeling"] = {k: v for k, v in found["labeling"].items() if v is not None or k not in later}
        return found

    @property
    def classes(self) -> int:
        """The number of classes that count, including background if it is a class."""
        return len(self.names) + (self.background == "threshold")

    @abstractmethod
    def files(self) -> list[tuple[Path, Any]]:
        """Return the path of each image and its label map: the argument of `label_map`, usually a path.

        Raises:
            UserError: If a file or folder of the published layout is missing.
        """

    def training_labels(self) -> Sequence[Any]:
        """Return label maps of other images (arguments of `label_map`) for class mean maps; empty if there are none.

        A class mean map is a baseline that does not look at the image: it gives each pixel the class that covers this
        place in the largest share of the images with this class. The metrics of this baseline begin with
        `class_prior_`.
        """
        return ()

    @staticmethod
    def label_map(source: Any) -> UInt8[np.ndarray, "H W2"]:
        """Read the values of a label map, by default from a PNG with one 8-bit number per pixel.

        Raises:
            UserError: If the label map is missing or not as published.
        """
        return read_png(source)

    @abstractmethod
    def labels(self) -> UInt8[np.ndarray, " 256"]:
        """Return the label of each value of a published label map: a class from 0 on, `NO_CLASS` or `IGNORED`."""

    def read(self, framing: Framing) -> Dataset[SegmentationBatch]:
        """List the images; see `Suite.read`."""
        require_protocol(self, framing.size)
        if self.background_names and self.background != "threshold":
            raise UserError(
                f"{self.labeling.class_names} has one line more than the {len(self.names)} classes, for the "
                "background, which is no class here: use the file without it, or the suite with background"
            )
        groups, _, repeated = self.queries()
        if repeated:
            shown = f"{repeated[0]!r}{' ...' if len(repeated) > 1 else ''}"
            rank_zero_warn(
                f"names in {self.labeling.class_names} that belong to two classes: {shown}. They stay "
                "with the first class, as in the authors' evaluation"
            )
        if len(groups) > NO_CLASS - 1:
            raise UserError(f"{self.labeling.class_names} has {len(groups)} names, more than {NO_CLASS - 1}")
        return SegmentedImages(self, framing)

    def queries(self) -> tuple[list[list[str]], list[int], list[str]]:
        """Return the names that form one embedding each, the class of each, and names that occur in a second class.

        Each name is an embedding of its own if the highest score counts. A name of two classes stays with the first;
        the background comes before the objects, as in the lists of training-free methods.
        """
        background = (len(self.names), self.background_names)
        every = [background, *enumerate(self.names)] if self.background_names else [*enumerate(self.names)]
        if self.labeling.several_names != "max":
            return [names for _, names in every], [number for number, _ in every], []
        owner: dict[str, int] = {}
        repeated = []
        for number, names in every:
            for name in names:
                if owner.setdefault(name, number) != number:
                    repeated.append(name)
        return [[name] for name in owner], [*owner.values()], repeated

    def collate(self, samples: Sequence[SegmentationBatch]) -> SegmentationBatch:
        """Return the only image."""
        (sample,) = samples
        return sample

    def test_dataloader(self) -> dict[str, DataLoader[Any]]:
        """A loader of single images, because images differ in size and number of windows."""
        assert self._read is not None, "Lightning calls setup first"
        return {self.key: evaluation_loader(self._read, 1, self.num_workers, self.collate)}

    def evaluation(self, module: AlignmentModule) -> SegmentationEvaluation:
        """Return an empty evaluation with the embedded prompts.

        Raises:
            UserError: If `labeling.map` is `align` and a name has no token.
        """
        groups, _, _ = self.queries()
        texts = embed_classes(module, groups, self.labeling.templates, keep_tokens=self.labeling.map == "align")
        if self.labeling.map == "align" and not texts.query.any(-1).all():
            number = int(texts.owner[texts.query.any(-1).int().argmin()])
            raise UserError(
                f"the tokenizer keeps no token of the class name {groups[number][0]!r}: use a different name"
            )
        return SegmentationEvaluation(module, self, texts)


class SegmentedImages(Dataset[SegmentationBatch]):
    """The images of a suite, cut into windows, with their true labels."""

    def __init__(self, suite: Segmentation, framing: Framing) -> None:
        # Do not store the suite: it refers to the trainer, which must not be sent to worker processes.
        self.key, self.data_set, self.labeling = suite.key, suite.data_set, suite.labeling
        self.names = [*suite.names, suite.background_names] if suite.background_names else suite.names
        self.framing = framing
        self.files = suite.files()
        self.label_map = suite.label_map
        self.labels = suite.labels()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> SegmentationBatch:
        """Return one image with its windows and labels.

        Raises:
            UserError: If the image or its labels cannot be read, or if they do not match.
        """
        image_path, label_path = self.files[index]
        image, of_image = load_image(image_path, self.key, upright=False)
        truth = self.label_map(label_path)
        of_truth = zlib.crc32(truth.tobytes())
        if truth.shape != image.size[::-1]:
            raise UserError(
                f"{label_path} has {truth.shape[1]} x {truth.shape[0]} pixels, but its image {image_path} has "
                f"{image.width} x {image.height}: use the published files"
            )
        known = self.labels[truth]
        if (known == _UNKNOWN).any():
            value = truth[known == _UNKNOWN][0]
            raise UserError(f"{label_path} has the value {value}, which is not a label of {self.data_set}")
        how = self.labeling
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
            None if how.pamr is None else torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous(),
        )


_UNKNOWN = 253


def label_table(classes: dict[int, int], others: dict[int, int]) -> UInt8[np.ndarray, " 256"]:
    """Return a table for `Segmentation.labels`, in which values that are not allowed have the label 253.

    The class of each value is in `classes`; `NO_CLASS` or `IGNORED` for each other value that is allowed, in `others`.
    """
    table = np.full(256, _UNKNOWN, dtype=np.uint8)
    for value, label in (classes | others).items():
        table[value] = label
    return table


class SegmentationEvaluation(SuiteEvaluation):
    """Collects, for each image and class, the numbers of pixels that are predicted, true, and both."""

    def __init__(self, module: AlignmentModule, suite: Segmentation, texts: ClassTexts) -> None:
        super().__init__()
        self.module = module
        self.suite = suite
        self.texts = texts
        self.embeddings = texts.embeddings()
        _, self.owner, _ = suite.queries()
        table = suite.labels()
        known = [torch.from_numpy(table[suite.label_map(source)]) for source in suite.training_labels()]
        self.priors = mean_masks(known, suite.classes, GRID) if known else None
        self.rows = PerSample((3 if self.priors is None else 6) * suite.classes + 1)

    def update(self, batch: SegmentationBatch) -> None:
        """Label the pixels of an image."""
        labels = [self.predict(batch)] + ([] if self.priors is None else [self.prior(batch)])
        found = [areas(one, batch.truth, self.suite.classes).flatten() for one in labels]
        pixels = (batch.truth != IGNORED).sum()
        self.rows.update(batch.ids, torch.cat([*found, pixels[None]])[None])

    def prior(self, batch: SegmentationBatch) -> UInt8[Tensor, "H W2"]:
        """The candidate whose class mean map is highest at each pixel; `NO_CLASS` if the two highest tie."""
        assert self.priors is not None
        classes = self._candidates(batch, range(self.suite.classes))
        if not len(classes):
            return torch.full_like(batch.truth, NO_CLASS)
        height, width = batch.truth.shape
        maps = self.priors.to(batch.truth.device)[classes].T[None]
        label, _ = label_pixels(maps, GRID, Canvas(height, width, (height, width), [(0, 0)]), (height, width))
        return _as_classes(label, classes)

    def _candidates(self, batch: SegmentationBatch, owner: Sequence[int]) -> Int[Tensor, " c"]:
        """The positions in `owner`, a list of classes, of classes that a pixel of the image can be assigned."""
        classes = torch.tensor(owner, device=batch.truth.device)
        if self.suite.labeling.candidates == "dataset":
            return torch.arange(len(classes), device=classes.device)
        return (torch.isin(classes, batch.truth) | (classes == len(self.suite.names))).nonzero()[:, 0]

    def predict(self, batch: SegmentationBatch) -> UInt8[Tensor, "H W2"]:
        """The predicted class of each pixel; `NO_CLASS` if the two best classes tie."""
        suite = self.suite
        parts = [self.module.encode_images(part) for part in batch.windows.split(suite.batch_size)]
        grid = parts[0].grid
        scores = torch.cat([self.patch_scores(part) for part in parts])
        names = self._candidates(batch, self.owner)
        size = (batch.truth.shape[0], batch.truth.shape[1])
        if not len(names):
            return torch.full_like(batch.truth, len(suite.names) if suite.background == "threshold" else NO_CLASS)
        how = suite.labeling
        refine = None if how.pamr is None or batch.image is None else Refinement(batch.image, how.pamr)
        label, score = label_pixels(
            scores[..., names], grid, batch.canvas, size, how.upsampling, suite.temperature, refine
        )
        label = _as_classes(label, torch.tensor(self.owner, device=names.device)[names])
        if suite.background == "threshold":
            label[score < suite.threshold] = len(suite.names)
        return label

    def patch_scores(self, images: Images) -> Float[Tensor, "W P C"]:
        """The score of each patch with each class."""
        if self.suite.labeling.map == "pooled":
            with torch.autocast(images.patches.device.type, enabled=False):
                return normalize(images.patches.float()) @ self.embeddings.T
        return torch.stack([self._aligned(images[i : i + 1]) for i in range(len(images))])

    def _aligned(self, image: Images) -> Float[Tensor, "P C"]:
        """The objective's own maps of one window, averaged over the tokens of a name and the prompts of a class."""
        total = torch.zeros(len(self.owner), image.patches.shape[1], device=image.patches.device)
        for start in range(0, len(self.texts.texts), _BLOCK):
            texts, query = self.texts.texts[start : start + _BLOCK], self.texts.query[start : start + _BLOCK]
            same = torch.zeros(len(texts), dtype=torch.long, device=total.device)
            asked = Queries(image[same], texts, query, same[:, None].expand(-1, 2))
            total += self.texts.sum(phrase_maps("align", self.module.objective, asked).float(), start)
        return (total / self.texts.owner.bincount()[:, None]).T

    def compute(self) -> dict[str, float]:
        """The metrics with their chance levels, and the numbers of images, classes and truncated prompts."""
        rows = self.rows.compute()
        (common, predicted, truth), *priors = (
            found.unbind(1) for found in rows[:, :-1].unflatten(-1, (-1, 3, self.suite.classes)).unbind(1)
        )
        candidates = (truth > 0) | (self.suite.labeling.candidates == "dataset")
        if self.suite.background == "threshold":
            candidates[:, -1] = True
        self.suite.per_class = self._per_class(common, predicted, truth)
        guess = segmentation(*expected_areas(truth, rows[:, -1], candidates), truth)
        result = segmentation(common, predicted, truth)
        result |= {f"chance_{name}": value for name, value in guess.items()}
        for areas_of_prior in priors:
            result |= {f"class_prior_{name}": value for name, value in segmentation(*areas_of_prior).items()}
        counts = {"images": len(rows), "classes": self.suite.classes, "cut_prompts": self.texts.cut}
        return result | {name: float(count) for name, count in counts.items()}

    def _per_class(
        self, common: Float[Tensor, "N C"], predicted: Float[Tensor, "N C"], truth: Float[Tensor, "N C"]
    ) -> list[dict[str, str | float]]:
        """IoU and pixel accuracy of each class over all images, and its numbers of images and pixels."""
        numbers = {
            "iou": class_ious(common, predicted, truth),
            "pixel_accuracy": common.sum(0) / truth.sum(0),
            "images": (truth > 0).sum(0),
            "true_pixels": truth.sum(0),
            "predicted_pixels": predicted.sum(0),
        }
        names = [*(", ".join(names) for names in self.suite.names), "background"]
        rows = zip(*(column.tolist() for column in numbers.values()), strict=True)
        return [{"class": name, **dict(zip(numbers, row, strict=True))} for name, row in zip(names, rows, strict=False)]


def _as_classes(label: UInt8[Tensor, "H W2"], classes: Int[Tensor, " c"]) -> UInt8[Tensor, "H W2"]:
    """Labels as classes; a label is a position in `classes`, or `NO_CLASS`."""
    decided = label != NO_CLASS
    label[decided] = classes.to(torch.uint8)[label[decided].long()]
    return label


def _own_names(path: Path, number: int, several: str | None) -> tuple[list[str], list[list[str]]]:
    """The names of the background, if the file has one line more than there are classes, and those of the classes."""
    if not path.is_file():
        raise UserError(f"data.class_names: there is no file {path}")
    content = read_lines(path)
    for line, text in content:
        if "\t" in text or re.match(r"\d+\s*:", text):
            raise UserError(
                f"{path}, line {line} has more than names: {text[:60]!r}. Write a file that has only the names of one "
                "class in each line, separated by commas"
            )
    lines = [(line, split_names(names)) for line, names in content]
    if len(lines) not in (number, number + 1):
        raise UserError(
            f"{path} must have the names of {number} classes, one class per line, or one line more, of which the first "
            f"is the background, but it has {len(lines)}"
        )
    for line, names in lines:
        if several is None and len(names) > 1:
            raise UserError(
                f"{path}, line {line} has {len(names)} names: set data.labeling.several_names to max (the highest "
                "score counts, as in the lists of training-free methods) or to mean (the mean of their embeddings)"
            )
    found = [names for _, names in lines]
    return (found[0], found[1:]) if len(found) > number else ([], found)


def read_png(path: Path) -> UInt8[np.ndarray, "H W2"]:
    """The values of a label map in a palette or gray PNG.

    Raises:
        UserError: If the file is missing, or has more than one number per pixel.
    """
    try:
        with open_image(path) as image:
            if image.mode not in ("P", "L"):
                raise UserError(
                    f"{path} must have one 8-bit number per pixel (a palette or gray PNG), but its mode is {image.mode}"
                )
            values = np.array(image)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"there is no label map {path}") from error
    except Exception as error:  # a broken file can raise nearly any exception in Pillow
        raise UserError(f"the label map {path} cannot be read ({error})") from error
    return values
