"""Tests zero-shot detection on the layouts of COCO and Pascal VOC: objects, regions, confidences, precision."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from patchword.data.pixels import Preprocessing
from patchword.errors import UserError
from patchword.features import Images, Texts
from patchword.objective import Objective
from patchword.objectives import LOUPE, SPARC
from patchword.suites import CocoDetection, VOCDetection
from patchword.suites.files import Framing
from tests import tiny
from tests.suites import published_regions as published
from tests.suites.color_model import Colors
from tests.suites.table_model import measure

FRAMING = Framing(Preprocessing("stretch", interpolation="nearest"), 16)  # a patch of 10 x 5 pixels becomes 4 x 4
GRAYS = {"kind 1": 1, "kind 2": 2, "kind 3": 9, "person": 1, "potted plant": 2}


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return published.coco_objects(tmp_path / "coco")


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    return published.voc_objects(tmp_path / "voc")


class Planted(Objective):
    """Maps are dot products; the regions are given."""

    regions: torch.Tensor | None = None

    def forward(self, images: Images, texts: Texts) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def score(self, images: Images, texts: Texts) -> torch.Tensor:
        raise NotImplementedError

    def align(self, images: Images, texts: Texts) -> torch.Tensor:
        return texts.tokens @ images.patches.mT

    def propose_regions(self, images: Images) -> tuple[torch.Tensor, torch.Tensor] | None:
        return None if self.regions is None else (self.regions, torch.zeros(self.regions.shape[:2]))


def colors(regions: torch.Tensor | None = None, kind: type[Colors] = Colors) -> Any:
    """A model whose map of a name is 1 on patches of its color, and whose objective proposes these regions."""
    found: Any = kind(GRAYS)
    found.objective = Planted()
    found.objective.regions = regions
    return found


def run(suite: Any, module: Any, batch: int = 2) -> dict[str, float]:
    """One pass of a suite with the model of colors."""
    data, evaluation = suite.read(FRAMING), suite.evaluation(module)
    for start in range(0, len(data), batch):
        evaluation.update(suite.collate([data[i] for i in range(start, min(start + batch, len(data)))]))
    found: dict[str, float] = evaluation.compute()
    return found


def test_objects_of_coco(coco: Path) -> None:
    """Classes are in the order of their ids, crowds are ignored, and an image without objects is an image."""
    suite = CocoDetection(str(coco))
    found = suite.annotated()
    assert suite.key == "coco_detection_val2017"
    assert found.names == ["kind 1", "kind 2", "kind 3"]
    assert [image.path.name for image in found.images] == [f"{n:012}.jpg" for n in (139, 285, 632)]
    for image, objects in zip(found.images, published.OBJECTS, strict=True):
        assert [(one.category + 1, one.box, one.ignored) for one in image.objects] == [
            (category, box, bool(crowd)) for category, _, box, crowd in objects
        ]


def test_objects_of_voc(voc: Path) -> None:
    """Pixels count from 0, right and bottom exclusive, parts are no objects, and difficult objects are ignored."""
    suite = VOCDetection(str(voc))
    found = suite.annotated()
    assert suite.key == "voc2012_detection_val"
    assert len(found.names) == 20
    for image, objects in zip(found.images, published.OBJECTS, strict=True):
        assert [(found.names[one.category], one.box, one.ignored) for one in image.objects] == [
            ({1: "person", 2: "potted plant"}[category], box, bool(difficult))
            for category, _, box, difficult in objects
        ]


@pytest.mark.parametrize("source", ["pooled", "align", "cosine", "dot"])
def test_a_model_that_sees_every_object_finds_all(coco: Path, voc: Path, source: str) -> None:
    """Both objects of a kind in an image are found, the crowd costs nothing, and a kind without objects is no class."""
    found = run(CocoDetection(str(coco), prompts="label"), colors())
    assert found[f"detection/{source}/map@0.3"] == found[f"detection/{source}/map@0.5"] == 1
    assert 0 <= found[f"detection/{source}/chance_map@0.5"] < 0.5
    assert found["detection/center_prior/map@0.5"] < 0.5
    assert (found["images"], found["classes"], found["objects"], found["ignored_objects"]) == (3, 3, 5, 1)
    assert not any("regions" in name for name in found)
    found = run(VOCDetection(str(voc), prompts="label"), colors())
    assert found[f"detection/{source}/map@0.5"] == found[f"detection/{source}/voc_map@0.5"] == 1
    assert (found["images"], found["classes"], found["objects"], found["ignored_objects"]) == (3, 20, 5, 1)


def test_the_largest_component_misses_the_others(coco: Path) -> None:
    """Kind 1: the larger of two objects in the first image; in the second, the crowd is larger than the object."""
    found = run(CocoDetection(str(coco), prompts="label", components="largest"), colors())
    of_kind_1 = 34 / 101  # recall 1/3 with precision 1: recalls 0, 0.01, ..., 0.33
    assert found["detection/pooled/map@0.5"] == pytest.approx((of_kind_1 + 1) / 2)


def test_regions_of_the_objective_are_candidates_of_every_class(coco: Path) -> None:
    """The class with the color of a region is most confident; doubles are removed, but not those of other classes."""
    first = torch.zeros(4, 4, dtype=torch.bool)
    first[0, 0] = True
    wide = torch.zeros(4, 4, dtype=torch.bool)
    wide[1:, :2] = True
    regions = torch.stack([first, wide, first, torch.zeros_like(first)]).flatten(1)[None]
    suite = CocoDetection(str(coco), prompts="label")
    data, evaluation = suite.read(FRAMING), suite.evaluation(colors(regions))
    evaluation.update(suite.collate([data[0], data[1]]))
    rows = evaluation.found["regions"].compute()
    assert len(rows) == 2 * 3 * 2  # images, classes, regions without the double and the empty one
    image, category, confidence = rows[:, :3].unbind(1)
    boxes = [tuple(box) for box in rows[:, 3:].tolist()]
    assert {*boxes} == {(0, 0, 4, 4), (0, 4, 8, 16)}
    seen = {(int(i), int(c), box): value for i, c, box, value in zip(image, category, boxes, confidence, strict=True)}
    assert seen[0, 0, (0, 0, 4, 4)] == 1  # gray value 1
    assert seen[0, 1, (0, 0, 4, 4)] == 0
    assert seen[1, 1, (0, 4, 8, 16)] == 1  # gray value 2
    found = evaluation.compute()
    assert found["detection/regions/map@0.5"] == pytest.approx((34 / 101 + 51 / 101) / 2)
    without = CocoDetection(str(coco), prompts="label", nms=None)
    without.read(FRAMING)
    evaluation = without.evaluation(colors(regions))
    evaluation.update(without.collate([data[0]]))
    assert len(evaluation.found["regions"].compute()) == 3 * 3


def test_mean_average_precision_is_that_of_pycocotools(coco: Path) -> None:
    """COCO's own code reads the same file, and detections that were converted back to pixels of the images."""
    suite = CocoDetection(str(coco))
    data = suite.read(Framing(Preprocessing("stretch"), 64))
    evaluation = suite.evaluation(tiny.module(LOUPE(regions=5)).eval())
    with torch.no_grad():
        evaluation.update(suite.collate([data[i] for i in range(3)]))
    found = evaluation.compute()
    with redirect_stdout(StringIO()):
        truth = COCO(str(coco / "annotations/instances_val2017.json"))
    for source in ("pooled", "align", "regions", "center_prior"):
        rows = evaluation.found[source].compute().tolist()
        answers = [
            {"image_id": (139, 285, 632)[int(image)], "category_id": int(category) + 1, "score": score}
            | {"bbox": [x0 * 40 / 64, y0 * 20 / 64, (x1 - x0) * 40 / 64, (y1 - y0) * 20 / 64]}
            for image, category, score, x0, y0, x1, y1 in rows
        ]
        with redirect_stdout(StringIO()):
            measured = COCOeval(truth, truth.loadRes(answers), "bbox")
            measured.params.iouThrs = np.array([0.3, 0.5])
            measured.evaluate()
            measured.accumulate()
        precision = measured.eval["precision"][:, :, :, 0, -1]
        for name, own in zip(("map@0.3", "map@0.5"), precision, strict=True):
            assert found[f"detection/{source}/{name}"] == pytest.approx(own[own > -1].mean(), abs=1e-9), source
    assert found["detection/regions/map@0.3"] > 0


def test_batches_and_repeated_samples_change_nothing(coco: Path) -> None:
    """An image counts once, and its detections do not depend on the other images of its batch."""
    module = tiny.exact_module(SPARC()).eval()
    one = measure(CocoDetection(str(coco)), module, batch=1)
    many = measure(CocoDetection(str(coco)), module, batch=4, order=[2, 0, 1, 0])
    assert one == pytest.approx(many, abs=1e-6)


def test_maps_of_towers_and_tokens(coco: Path) -> None:
    """A source that runs the towers again gives boxes, and a class can be compared by the tokens of its name."""
    module = tiny.exact_module(SPARC(), map_sources=["cosine", "value"]).eval()
    suite = CocoDetection(str(coco), embedding="tokens", prompts="photo")
    found = measure(suite, module)
    assert {name.split("/")[1] for name in suite.definitions} == {"pooled", "cosine", "value", "center_prior", "chance"}
    assert {*suite.definitions} <= {*found}
    assert 0 <= found["detection/value/map@0.3"] <= 1
    pooled = CocoDetection(str(coco), prompts="photo")
    pooled.read(FRAMING)
    assert not torch.allclose(pooled.evaluation(module).classes, suite.evaluation(module).classes, atol=1e-3)


def test_each_class_has_a_row(coco: Path) -> None:
    """The mean of a column is the metric; a class without objects has no precision."""
    suite = CocoDetection(str(coco), prompts="label", components="largest")
    found = run(suite, colors())
    column = [row["pooled/ap@0.5"] for row in suite.per_class]
    assert [row["class"] for row in suite.per_class] == ["kind 1", "kind 2", "kind 3"]
    assert [row["objects"] for row in suite.per_class] == [3, 2, 0]
    assert np.nanmean(np.array(column, dtype=float)) == pytest.approx(found["detection/pooled/map@0.5"])
    assert np.isnan(column[2])


def test_a_model_that_is_not_a_number_finds_nothing(coco: Path) -> None:
    """Patches that are NaN give no detection, and precision 0 instead of no number."""

    class Broken(Colors):
        def encode_images(self, pixels: torch.Tensor) -> Any:
            images = super().encode_images(pixels)
            images.patches.fill_(torch.nan)
            return images

    found = run(CocoDetection(str(coco), prompts="label"), colors(kind=Broken))
    assert found["detection/pooled/map@0.3"] == 0


def test_boxes_without_area_are_counted(coco: Path) -> None:
    """COCO has a few boxes without width; nobody can find them, so they do not count, and the result says so."""
    change(coco, lambda content: content["annotations"][0].update(bbox=[3, 3, 0, 5]))
    found = run(CocoDetection(str(coco), prompts="label"), colors())
    assert (found["objects"], found["empty_objects"]) == (4, 1)


def change(root: Path, how: Callable[[Any], Any]) -> None:
    """Change the annotations of COCO."""
    path = root / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    how(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            lambda c: c["annotations"][1].update(bbox=[20, 10, 25, 5]),
            "annotations[1]: the box from (20, 10) to (45, 15)",
        ),
        (lambda c: c["annotations"][1].update(bbox=[-5, 10, 20, 5]), "leaves its image of 40 x 20 pixels"),
        (lambda c: c["annotations"][2].update(category_id=7), "annotations[2]: 7 is not the id of a category"),
        (lambda c: c["annotations"][4].update(image_id=7), "annotations[4]: image_id 7 is not the id of an image"),
        (lambda c: c["images"][1].update(file_name="none.jpg"), "images[1]: there is no image"),
        (lambda c: c["images"][1].update(width=60), "has 40 x 20 pixels, but its annotations are for 60 x 20"),
        (lambda c: c["images"][1].update(file_name="../x.jpg"), "leads out of"),
    ],
)
def test_mistakes_in_coco(coco: Path, how: Callable[[Any], Any], message: str) -> None:
    """The message names the file, the record, and what is wrong."""
    change(coco, how)
    with pytest.raises(UserError) as caught:
        run(CocoDetection(str(coco), prompts="label"), colors())
    assert message in str(caught.value)
    assert "instances_val2017.json" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("pottedplant", "cactus", "object 3: 'cactus' is none of VOC's classes"),
        ("<xmax>10.0", "<xmax>90.0", "object 1: the box from (0, 0) to (90, 5) leaves its image"),
        ("<xmax>10.0", "<xmax>ten", "object 1: xmax must be a number, not 'ten'"),
        ("<difficult>0", "<difficult>", "object 1: difficult must be a number"),
        ("VOC2012", "VOC2007", "is of VOC2007, not of VOC2012: set data.year or data.root"),
        ("<annotation>", '<!DOCTYPE a [<!ENTITY b "c">]><annotation>', "it has a document type"),
        ("</annotation>", "", "is not valid XML"),
    ],
)
def test_mistakes_in_voc(voc: Path, old: str, new: str, message: str) -> None:
    """The message names the file, the object, and what is wrong."""
    path = voc / "Annotations/2008_000002.xml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError) as caught:
        VOCDetection(str(voc)).annotated()
    assert message in str(caught.value)
    assert "2008_000002.xml" in str(caught.value)


def test_missing_files_and_wrong_options(voc: Path, tmp_path: Path) -> None:
    """One line says which file is missing, or which option to change."""
    with pytest.raises(UserError, match=r"no file .*instances_val2017\.json \(of COCO's annotations_trainval"):
        CocoDetection(str(tmp_path)).annotated()
    with pytest.raises(UserError, match=r"no file .*test\.txt"):
        VOCDetection(str(voc), split="test").annotated()
    with pytest.raises(UserError, match=r"dog_val\.txt, line 1: must be the name of an image, not '2008_000002 -1'"):
        VOCDetection(str(voc), split="dog_val").annotated()
    (voc / "Annotations/2008_000003.xml").unlink()
    with pytest.raises(UserError, match=r"no file .*2008_000003\.xml \(of .*val\.txt, line 2\)"):
        VOCDetection(str(voc)).annotated()
    with pytest.raises(UserError, match=r"data\.nms must be from 0 to 1, or null, not 2.0"):
        CocoDetection(".", nms=2.0)
