"""Zero-shot detection: regions of an image are ranked by the names of classes.

    regions     the boxes around the components of a class's map at or above the middle of its range, or the regions
                that the objective proposes as objects, which are the same for all classes
    confidence  cosine of the mean of the patches over a region with the embedding of the class

LOUPE (Li et al., NeurIPS 2022, arXiv 2208.02515) reports mAP@0.3 and mAP@0.5 of the regions of its head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.ops import batched_nms

from patchword.errors import UserError
from patchword.maps.phrases import area_of, center_map, chance_maps, upsample
from patchword.maps.sources import PLAIN_SOURCES
from patchword.metrics.components import component_boxes, largest_box
from patchword.metrics.detection import THRESHOLDS, Boxes, Rule, category_precisions
from patchword.metrics.per_sample import PerSample
from patchword.ops import normalize
from patchword.suites.base import SuiteEvaluation
from patchword.suites.class_maps import ClassMaps, Seen
from patchword.suites.objects import ROWS, ObjectBatch, ObjectSuite
from patchword.suites.proposed import proposed_boxes
from patchword.training.needs import coverage

if TYPE_CHECKING:
    from patchword.module import AlignmentModule

_PIXELS = 2**21  # pixels of maps at a time: 64 MB or so
_BASELINES = ("center_prior", "chance")
_SOURCES = {
    "pooled": "the cosine of patch and pooled embedding of the class",
    "align": "the objective's own map of the class's name",
    "cosine": "the cosine of patch and tokens of the class's name",
    "dot": "the dot product of patch and tokens of the class's name",
    "value": "the cosine of patch and tokens of the class's name on MaskCLIP's value path",
    "grad_eclip": "Grad-ECLIP's map of the class's name",
    "chefer": "the relevance of Chefer et al. of the class's name",
    "legrad": "LeGrad's map of the class's name",
    "grad_cam": "Grad-CAM's map of the class's name",
    "banzhaf": "the sampled interactions of the class's name with the patches",
}
_REGIONS = {
    "regions": "the regions that the objective proposes",
    "center_prior": "the box around the center that the map of distances to the center gives, for every class",
    "chance": "boxes of maps of noise, with noise as confidence",
}


class Detection(ObjectSuite):
    """Zero-shot detection; each data set is a subclass.

    All sources of regions are measured in one run: the model's `map_sources`, `pooled`, `regions` if the objective
    proposes any (LOUPE), and the baselines `center_prior` and `chance`. The confidence of a region is the same for all
    of them except `chance`, so that they differ only in their boxes.

    Args:
        root: The folder of the data set, in its published layout.
        embedding: The embedding of a class, with which regions are compared: the `pooled` embedding of its prompts, or
            the mean of the `tokens` of its name in them, as LOUPE compares phrases with regions.
        components: The components of a map that become boxes: `all`, or the `largest` one.
        nms: Of two boxes of a class that overlap by more than this intersection over union, the one with the lower
            confidence is left out; null keeps all boxes.
        options: Options of all suites with objects; see `ObjectSuite`.

    Raises:
        UserError: If `nms` is not from 0 to 1.

    Attributes:
        rules: The rule of `metrics.detection` for each prefix of the metrics.
    """

    rules: ClassVar[dict[str, tuple[Rule, str]]]

    def __init__(
        self,
        root: str,
        embedding: Literal["pooled", "tokens"] = "pooled",
        components: Literal["all", "largest"] = "all",
        nms: float | None = 0.5,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        if nms is not None and not 0 <= nms <= 1:
            raise UserError(f"data.nms must be from 0 to 1, or null, not {nms}")
        self.embedding = embedding
        self.components = components
        self.nms = nms
        self.sources: tuple[str, ...] = ("pooled", *PLAIN_SOURCES, "regions", *_BASELINES)

    @property
    def definitions(self) -> dict[str, str]:  # type: ignore[override] # the sources are a part of the names
        """The definition of each metric, by the name of the metric."""
        which = {"all": "each component", "largest": "the largest component"}[self.components]
        boxes = {name: f"the boxes around {which} of maps: {what}" for name, what in _SOURCES.items()} | _REGIONS
        return {
            f"detection/{source}/{prefix}map@{threshold:g}": f"{what} {threshold:g}. Regions: {boxes[source]}."
            for source in self.sources
            for prefix, (_, what) in self.rules.items()
            for threshold in THRESHOLDS
        }

    def evaluation(self, module: AlignmentModule) -> DetectionEvaluation:
        """Return an empty evaluation with the embedded prompts.

        Raises:
            UserError: If the tokenizer keeps no token of a class's name.
        """
        self.sources = ("pooled", *module.map_sources, "regions", *_BASELINES)
        return DetectionEvaluation(module, self)


class DetectionEvaluation(SuiteEvaluation):
    """Collects the detections of each source of regions, and the objects."""

    def __init__(self, module: AlignmentModule, suite: Detection) -> None:
        super().__init__()
        self.module = module
        self.suite = suite
        self.maps = ClassMaps(module, suite.names, suite.templates)
        self.pooled = self.maps.pooled()
        self.classes = self.pooled if suite.embedding == "pooled" else self.maps.tokens()
        self.found: Any = torch.nn.ModuleDict({source: PerSample(7) for source in suite.sources})
        self.true = PerSample(7)
        self.empty = PerSample(1)

    def update(self, batch: ObjectBatch) -> None:
        """Detect the objects of a batch."""
        images = self.module.encode_images(batch.images)
        for n, key in enumerate(batch.ids.tolist()):
            seen = Seen(key, batch.images[n : n + 1], images[n : n + 1], area_of(images.shapes[n], images.grid))
            for source in self.suite.sources:
                boxes, category, confidence = self.detect(source, seen)
                _add(self.found[source], key, torch.stack([category.double(), confidence.double()], 1), boxes)
            own = batch.owner == n
            _add(self.true, key, torch.stack([batch.category[own], batch.ignored[own]], 1), batch.boxes[own])
        self.empty.update(batch.ids, batch.empty[:, None].double())

    def detect(self, source: str, seen: Seen) -> tuple[Float[Tensor, "N 4"], Int[Tensor, " N"], Float[Tensor, " N"]]:
        """The boxes in pixels of the view that a source finds in an image, their classes and confidences."""
        boxes, category = self.regions(source, seen)
        if source == "chance":
            number = -1 - torch.arange(len(category), device=category.device)  # maps have the numbers from 0 on
            confidence = chance_maps(torch.stack([torch.full_like(number, seen.key), number], 1), 1)[:, 0]
        else:
            with torch.autocast(boxes.device.type, enabled=False):
                vectors = coverage(boxes, seen.area.grid, seen.size) @ seen.patches
                confidence = (normalize(vectors) * self.classes[category]).sum(-1)
        confidence = confidence.nan_to_num(nan=-torch.inf, posinf=torch.inf)
        if self.suite.nms is not None:
            kept = batched_nms(boxes, confidence.float(), category, self.suite.nms).sort().values
            boxes, category, confidence = boxes[kept], category[kept], confidence[kept]
        return boxes, category, confidence

    def regions(self, source: str, seen: Seen) -> tuple[Float[Tensor, "N 4"], Int[Tensor, " N"]]:
        """The boxes of a source in pixels of the view, and the class that each is a candidate for."""
        classes = torch.arange(len(self.classes), device=self.classes.device)
        if source in ("regions", "center_prior"):  # the same boxes for all classes
            center = center_map(seen.area.grid)[None].to(classes.device)
            boxes = self._proposed(seen) if source == "regions" else self._boxes(center, seen)[0]
            return boxes.repeat(len(classes), 1), classes.repeat_interleave(len(boxes))
        if source == "chance":
            keys = torch.stack([torch.full_like(classes, seen.key), classes], 1)
            return self._boxes(chance_maps(keys, len(seen.patches)), seen)
        if source == "pooled":
            with torch.autocast(classes.device.type, enabled=False):
                return self._boxes(self.pooled @ normalize(seen.patches).T, seen)
        return self._boxes(self.maps.maps(source, seen), seen)

    def _boxes(self, maps: Float[Tensor, "C p"], seen: Seen) -> tuple[Float[Tensor, "N 4"], Int[Tensor, " N"]]:
        """The boxes around the components of maps at or above the middle of their range, and the map of each."""
        found, owner = [], []
        step = max(1, _PIXELS // (seen.size[0] * seen.size[1]))
        for start in range(0, len(maps), step):
            pixels = upsample(maps[start : start + step], seen.area.grid, seen.size)
            middle = (pixels.amin((1, 2), keepdim=True) + pixels.amax((1, 2), keepdim=True)) / 2
            if self.suite.components == "all":
                boxes, number = component_boxes(pixels >= middle)
            else:
                boxes, number = largest_box(pixels >= middle), torch.arange(len(pixels), device=pixels.device)
                boxes, number = boxes[boxes[:, 2] > 0], number[boxes[:, 2] > 0]
            found.append(boxes)
            owner.append(start + number)
        return torch.cat(found), torch.cat(owner)

    def _proposed(self, seen: Seen) -> Float[Tensor, "M 4"]:
        """The regions that the objective proposes as objects, in pixels; none if it proposes none."""
        boxes = proposed_boxes(self.module.objective, seen.images, (seen.pixels.shape[2], seen.pixels.shape[3]))
        return seen.patches.new_zeros(0, 4) if boxes is None else boxes

    def compute(self) -> dict[str, float]:
        """The mean average precisions of each source with their chance levels, and the numbers of images and objects.

        `ignored_objects` need not be found, and the boxes of `empty_objects` have no area. These objects do not count.
        `cut_prompts` were truncated by the tokenizer. `regions` are left out if the objective proposes none.
        """
        rows, empty = self.true.compute().cpu(), self.empty.compute()
        true, ignored = (_boxes_of(rows[rows[:, 2] == flag]) for flag in (0, 1))
        found = {source: own.compute().cpu() for source, own in self.found.items()}
        self.suite.sources = tuple(source for source in self.suite.sources if source != "regions" or len(found[source]))
        of_classes: dict[tuple[str, str], dict[int, float]] = {}
        for source in self.suite.sources:
            detected, confidence = _boxes_of(found[source]), found[source][:, 2]
            for prefix, (rule, _) in self.suite.rules.items():
                measured = category_precisions(detected, confidence, true, THRESHOLDS, ignored, rule)
                of_classes |= {(source, f"{prefix}map@{t:g}"): of_class for t, of_class in measured.items()}
        counts = true.category.bincount(minlength=len(self.suite.names)).tolist()
        self.suite.per_class = [
            {"class": name, "objects": counts[n]}
            | {f"{source}/{key.replace('map@', 'ap@')}": of.get(n, _NAN) for (source, key), of in of_classes.items()}
            for n, name in enumerate(self.suite.names)
        ]
        numbers = {"images": len(empty), "classes": len(self.suite.names), "objects": len(true.boxes)}
        numbers |= {"ignored_objects": len(ignored.boxes), "empty_objects": int(empty.sum())}
        numbers |= {"cut_prompts": self.maps.cut}
        return self._means(of_classes) | {name: float(number) for name, number in numbers.items()}

    def _means(self, of_classes: dict[tuple[str, str], dict[int, float]]) -> dict[str, float]:
        """The means over classes by name, and their chance levels: the values of `chance`."""
        result = {}
        for (source, name), values in of_classes.items():
            result[f"detection/{source}/{name}"] = _mean(values)
            if source not in _BASELINES:
                result[f"detection/{source}/chance_{name}"] = _mean(of_classes["chance", name])
        return result


_NAN = float("nan")


def _mean(of_class: dict[int, float]) -> float:
    return sum(of_class.values()) / len(of_class) if of_class else _NAN


def _add(rows: Any, key: int, values: Tensor, boxes: Float[Tensor, "N 4"]) -> None:
    """Add boxes of an image: the image, two values and four coordinates each."""
    number = torch.arange(len(boxes), device=boxes.device)
    image = torch.full_like(number, key)
    rows.update(image * ROWS + number, torch.cat([image[:, None].double(), values.double(), boxes.double()], 1))


def _boxes_of(rows: Float[Tensor, "N 7"]) -> Boxes:
    return Boxes(rows[:, 3:], rows[:, 0].long(), rows[:, 1].long())
