"""Tests the classification of COCO's boxes: RoIAlign against loops, known answers, baselines, counts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from patchword.data.pixels import Preprocessing
from patchword.errors import UserError
from patchword.maps.phrases import area_of
from patchword.objectives import SPARC
from patchword.suites import CocoBoxClassification
from patchword.suites.box_classification import box_vectors
from patchword.suites.class_maps import Seen
from patchword.suites.files import Framing
from tests import tiny
from tests.suites import published_regions as published
from tests.suites.color_model import model
from tests.suites.table_model import measure

FRAMING = Framing(Preprocessing("stretch", interpolation="nearest"), 16)  # a patch of 10 x 5 pixels becomes 4 x 4


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return published.coco_objects(tmp_path)


def run(suite: Any, module: Any) -> dict[str, float]:
    """One pass of a suite with the model of colors."""
    data, evaluation = suite.read(FRAMING), suite.evaluation(module)
    evaluation.update(suite.collate([data[i] for i in range(len(data))]))
    found: dict[str, float] = evaluation.compute()
    return found


def test_a_model_that_sees_colors(coco: Path) -> None:
    """Each box has the color of its class, the image is mostly black, and the crowd is not a box."""
    suite = CocoBoxClassification(str(coco), prompts="label")
    found = run(suite, model({"kind 1": 1, "kind 2": 2, "kind 3": 9}))
    assert suite.key == "coco_box_classification_val2017"
    assert found["accuracy@1"] == found["accuracy@5"] == found["mean_class_recall"] == 1
    # First image: three patches of color 1, one of color 2. Second image: one (the crowd is two more) and six.
    assert found["whole_image/accuracy@1"] == pytest.approx(3 / 5)
    assert found["most_frequent/accuracy@1"] == pytest.approx(3 / 5)
    assert found["chance_accuracy@1"] == pytest.approx(1 / 3)
    assert (found["images"], found["boxes"], found["crowds"], found["classes"]) == (3, 5, 1, 3)
    assert [(row["class"], row["accuracy@1"], row["boxes"]) for row in suite.per_class[:2]] == [
        ("kind 1", 1, 3),
        ("kind 2", 1, 2),
    ]
    wrong = run(CocoBoxClassification(str(coco), prompts="label"), model({"kind 1": 2, "kind 2": 1, "kind 3": 9}))
    assert wrong["accuracy@1"] == 0
    assert wrong["most_frequent/accuracy@1"] == pytest.approx(3 / 5)


def roi(patches: Tensor, box: list[float]) -> list[float]:
    """The mean of points of a box, in cells of a grid [rows, columns, D], written as loops from the definition."""
    rows, columns, width = patches.shape
    left, top, right, bottom = (edge - 0.5 for edge in box)  # the center of a patch has whole coordinates
    down, across = math.ceil(bottom - top), math.ceil(right - left)
    total = [0.0] * width
    for i in range(down):
        for j in range(across):
            y = min(max(top + (i + 0.5) * (bottom - top) / down, 0), rows - 1)
            x = min(max(left + (j + 0.5) * (right - left) / across, 0), columns - 1)
            for row in {math.floor(y), math.ceil(y)}:
                for column in {math.floor(x), math.ceil(x)}:
                    weight = (1 - abs(y - row)) * (1 - abs(x - column))
                    for d in range(width):
                        total[d] += weight * float(patches[row, column, d])
    return [value / (down * across) for value in total]


def test_equals_loops(coco: Path) -> None:
    """The ranks of all boxes, for boxes that end between patches, computed point by point and text by text."""
    path = coco / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    for number, annotation in enumerate(content["annotations"]):
        annotation["bbox"] = [1.5 * number, 0.7 * number, 7.3 + 3 * number, 4.1 + 2 * number]
    words = ["red", "blue", "green", "yellow", "purple", "book", "cat", "dog", "apple", "car", "cup"]
    content["categories"] = [{"id": n, "name": word, "supercategory": "thing"} for n, word in enumerate(words)]
    path.write_text(json.dumps(content))
    module = tiny.exact_module(SPARC()).eval()
    suite = CocoBoxClassification(str(coco), prompts="photo")
    data = suite.read(Framing(Preprocessing("stretch"), 64))
    evaluation = suite.evaluation(module)
    with torch.no_grad():
        evaluation.update(suite.collate([data[i] for i in range(3)]))
        expected = []
        for index in range(3):
            image = module.encode_images(data[index].image[None])
            patches = image.patches[0].unflatten(0, image.grid)
            seen = Seen(index, data[index].image[None], image, area_of(image.shapes[0], image.grid))
            for one in data[index].objects:
                if one.ignored:
                    continue
                cells = [edge * image.grid[0] / 64 for edge in one.box]
                ranks = []
                of_box = torch.tensor(roi(patches, cells))
                torch.testing.assert_close(box_vectors(seen, torch.tensor([one.box]))[0], of_box, atol=1e-5, rtol=0)
                for vector in (of_box, image.pooled[0]):
                    cosines = []
                    for name in suite.names:
                        text = module.encode_texts([f"a photo of a {name}."])[0].pooled[0]
                        cosines.append(float(vector @ text / vector.norm() / text.norm()))
                    ranks.append(sum(value >= cosines[one.category] - 1e-7 for value in cosines))
                expected.append([one.category, *ranks])
    assert evaluation.rows.compute().long().tolist() == expected
    assert len({rank for _, rank, _ in expected}) > 1


def test_the_order_of_batches_changes_nothing(coco: Path) -> None:
    """A box counts once, also if a sampler repeats its image."""
    module = tiny.exact_module(SPARC()).eval()
    one = measure(CocoBoxClassification(str(coco)), module, batch=1)
    assert one == measure(CocoBoxClassification(str(coco)), module, batch=3, order=[1, 2, 0, 1])


def test_a_box_outside_of_its_image_is_refused(coco: Path) -> None:
    """The message names the annotation."""
    path = coco / "annotations/instances_val2017.json"
    path.write_text(path.read_text().replace("[20, 10, 20, 5]", "[60, 10, 20, 5]"))
    with pytest.raises(UserError, match=r"annotations\[1\]: the box from \(60, 10\) to \(80, 15\) leaves its image"):
        CocoBoxClassification(str(coco)).annotated()
