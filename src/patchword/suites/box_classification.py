"""Box classification: the class of a given box, by the patches in it.

FG-CLIP (Xie et al., ICML 2025, arXiv 2505.05071) embeds a box by RoIAlign (He et al., ICCV 2017, arXiv 1703.06870) over
the patch grid, with one cell, and compares it with the names of all classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.ops import roi_align

from patchword.maps.phrases import area_of
from patchword.metrics.classification import KS, class_accuracies, class_ranks, classification
from patchword.metrics.per_sample import PerSample
from patchword.ops import normalize
from patchword.suites.base import SuiteEvaluation
from patchword.suites.class_maps import Seen
from patchword.suites.coco_objects import coco_objects
from patchword.suites.objects import ROWS, AnnotatedImages, ObjectBatch, ObjectSuite
from patchword.suites.prompts import embed_classes

if TYPE_CHECKING:
    from patchword.module import AlignmentModule

_WHOLE = "whole_image"


class CocoBoxClassification(ObjectSuite):
    """Classification of the boxes of COCO's objects into its 80 categories, given the boxes. Crowds are left out.

    Args:
        root: The folder with `val2017/` (also in `images/`) and `annotations/instances_val2017.json`.
        split: The split; the names of the folder and of the file contain it.
        options: Options of all suites with objects; see `ObjectSuite`.
    """

    definitions = {  # noqa: RUF012 - a ClassVar
        "accuracy@1": "Share of boxes whose class has the strictly highest cosine of all classes with the vector of "
        "the box: RoIAlign of the patches, one cell.",
        "accuracy@5": "Share of boxes whose class is among the 5 classes with the highest cosines; a tie counts as an "
        "error.",
        "mean_class_recall": "Accuracy@1 within each class, averaged over the classes that have boxes.",
        f"{_WHOLE}/accuracy@1": "Accuracy@1 of the global embedding of the image, which does not know the box.",
        f"{_WHOLE}/accuracy@5": "Accuracy@5 of the global embedding of the image, which does not know the box.",
        "most_frequent/accuracy@1": "Share of boxes of the most frequent class: a guess that sees no image.",
        "most_frequent/accuracy@5": "Share of boxes of the 5 most frequent classes: a guess that sees no image.",
    }

    def __init__(self, root: str, split: str = "val2017", **options: Any) -> None:
        super().__init__(root, **options)
        self.split = split
        self.data_set = f"COCO, boxes of {split}"  # type: ignore[misc]

    @property
    def key(self) -> str:
        """`coco_box_classification_` and the split."""
        return f"coco_box_classification_{self.split}"

    def annotated(self) -> AnnotatedImages:
        """See `ObjectSuite.annotated`."""
        return coco_objects(self.root, self.image_folder(self.split), self.split)

    def evaluation(self, module: AlignmentModule) -> BoxClassificationEvaluation:
        """Return an empty evaluation with the embedded prompts."""
        return BoxClassificationEvaluation(module, self)


class BoxClassificationEvaluation(SuiteEvaluation):
    """Collects the rank of the class of each box, for the vector of the box and for that of the image."""

    def __init__(self, module: AlignmentModule, suite: ObjectSuite) -> None:
        super().__init__()
        self.module = module
        self.suite = suite
        texts = embed_classes(module, [[name] for name in suite.names], suite.templates, keep_tokens=False)
        self.classes = texts.embeddings()
        self.cut = texts.cut
        self.rows = PerSample(3)
        self.counts = PerSample(2)

    def update(self, batch: ObjectBatch) -> None:
        """Classify the boxes of a batch."""
        images = self.module.encode_images(batch.images)
        crowds = torch.zeros_like(batch.ids).index_add(0, batch.owner, batch.ignored.long())
        for n, key in enumerate(batch.ids.tolist()):
            seen = Seen(key, batch.images[n : n + 1], images[n : n + 1], area_of(images.shapes[n], images.grid))
            own = (batch.owner == n) & ~batch.ignored
            label = batch.category[own]
            with torch.autocast(batch.boxes.device.type, enabled=False):
                of_boxes = normalize(box_vectors(seen, batch.boxes[own])) @ self.classes.T
                of_image = (normalize(images.pooled[n].float()) @ self.classes.T).expand(len(label), -1)
            ranks = [class_ranks(scores, label) for scores in (of_boxes, of_image)]
            number = key * ROWS + torch.arange(len(label), device=label.device)
            self.rows.update(number, torch.stack([label, *ranks], 1).double())
        self.counts.update(batch.ids, torch.stack([crowds, batch.empty], 1).double())

    def compute(self) -> dict[str, float]:
        """The accuracies with their chance levels, those of the baselines, and the numbers of images and boxes.

        `crowds`, and `empty_objects`, whose boxes have no area, do not count. `cut_prompts` were truncated by the
        tokenizer.
        """
        label, rank, of_image = self.rows.compute().long().unbind(-1)
        counts, classes = self.counts.compute(), len(self.suite.names)
        found = classification(label, rank, classes)
        whole = classification(label, of_image, classes)
        frequent = label.bincount(minlength=classes).sort(descending=True).values.double() / len(label)
        for k in KS:
            found |= {f"{_WHOLE}/{name}accuracy@{k}": whole[f"{name}accuracy@{k}"] for name in ("", "chance_")}
            found[f"most_frequent/accuracy@{k}"] = float(frequent[:k].sum())
        self.suite.per_class = self._per_class(label, {"": rank, f"{_WHOLE}/": of_image})
        crowds, empty = counts.sum(0).tolist()
        numbers = {"images": len(counts), "boxes": len(label), "crowds": crowds, "empty_objects": empty}
        return found | {name: float(n) for name, n in numbers.items()} | {"cut_prompts": float(self.cut)}

    def _per_class(self, label: Tensor, ranks: dict[str, Tensor]) -> list[dict[str, str | float]]:
        """The accuracies within each class, and its number of boxes."""
        names = self.suite.names
        columns = {
            f"{prefix}accuracy@{k}": class_accuracies(label, rank, len(names), k).tolist()
            for prefix, rank in ranks.items()
            for k in KS
        }
        columns["boxes"] = label.bincount(minlength=len(names)).tolist()
        rows = zip(*columns.values(), strict=True)
        return [{"class": name, **dict(zip(columns, row, strict=True))} for name, row in zip(names, rows, strict=True)]


def box_vectors(seen: Seen, boxes: Float[Tensor, "N 4"]) -> Float[Tensor, "N D"]:
    """RoIAlign of the patches of an image over boxes in pixels, with one cell, as in FG-CLIP's code.

    A cell is the mean of points in a regular grid, as many as the box has patches in each direction, rounded up, with
    bilinear interpolation between the centers of patches (`aligned=True`).
    """
    (height, width), (rows, columns) = seen.size, seen.area.grid
    patches = seen.patches.T.unflatten(1, (rows, columns))[None]
    scaled = boxes * boxes.new_tensor([columns / width, rows / height] * 2)
    vectors: Tensor = roi_align(patches, [scaled.to(patches)], output_size=1, sampling_ratio=-1, aligned=True)
    return vectors[..., 0, 0]
