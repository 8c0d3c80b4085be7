"""Average precision of boxes equals that of pycocotools, and known answers."""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from patchword.metrics.detection import MOST, Boxes, matched, mean_average_precision


def of_coco(detected: Boxes, confidence: torch.Tensor, true: Boxes, threshold: float) -> float:
    """COCO's own evaluation of the same boxes."""

    def rows(boxes: Boxes) -> list[dict]:
        found = []
        for (left, top, right, bottom), image, category in zip(
            boxes.boxes.tolist(), boxes.image.tolist(), boxes.category.tolist(), strict=True
        ):
            box = [left, top, right - left, bottom - top]
            found.append({"bbox": box, "image_id": image, "category_id": category, "area": box[2] * box[3]})
        return found

    images = {*true.image.tolist(), *detected.image.tolist()}
    truth, answers = COCO(), COCO()
    data = {"images": [{"id": image} for image in images], "categories": [{"id": n} for n in range(9)]}
    with redirect_stdout(StringIO()):
        truth.dataset = data | {"annotations": [row | {"id": n + 1, "iscrowd": 0} for n, row in enumerate(rows(true))]}
        truth.createIndex()
        scores = confidence.tolist()
        found = [
            row | {"score": score, "id": n + 1}
            for n, (row, score) in enumerate(zip(rows(detected), scores, strict=True))
        ]
        answers.dataset = data | {"annotations": found}
        answers.createIndex()
        run = COCOeval(truth, answers, "bbox")
        run.params.iouThrs = np.array([threshold])
        run.params.areaRng, run.params.areaRngLbl = [[0, 1e10]], ["all"]
        run.evaluate()
        run.accumulate()
    precision = run.eval["precision"][0, :, :, 0, -1]  # the most detections
    return float(precision[precision > -1].mean())


def random_boxes(count: int, generator: torch.Generator) -> Boxes:
    corner = torch.rand(count, 2, generator=generator) * 60
    size = 10 + torch.rand(count, 2, generator=generator) * 30
    image = torch.randint(0, 12, (count,), generator=generator)
    return Boxes(torch.cat([corner, corner + size], 1), image, torch.randint(0, 4, (count,), generator=generator))


@pytest.mark.parametrize("threshold", [0.3, 0.5])
@pytest.mark.parametrize("count", [40, 600])
def test_it_is_that_of_coco(count: int, threshold: float) -> None:
    """Random boxes near true ones, with misses, doubles and confidences that tie."""
    generator = torch.Generator().manual_seed(count)
    true = random_boxes(60, generator)
    near = torch.randint(0, 60, (count,), generator=generator)
    boxes = true.boxes[near] + 4 * torch.randn(count, 4, generator=generator)
    boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    other = torch.rand(count, generator=generator) < 0.3
    category = torch.where(other, torch.randint(0, 5, (count,), generator=generator), true.category[near])
    detected = Boxes(boxes, true.image[near], category)
    confidence = (torch.rand(count, generator=generator) * 1000).round() / 1000
    # COCO ranks equal confidences by image.
    order = detected.image.argsort(stable=True)
    detected, confidence = detected[order], confidence[order]
    found = mean_average_precision(detected, confidence, true, [threshold])
    assert 0.05 < found[f"map@{threshold}"] < 0.95
    assert found[f"map@{threshold}"] == pytest.approx(of_coco(detected, confidence, true, threshold), abs=1e-9)


def test_known_answers() -> None:
    """A box counts once, categories are averaged, and a missing category is 0."""
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    true = Boxes(box.repeat(2, 1), torch.tensor([0, 0]), torch.tensor([0, 1]))
    twice = Boxes(box.repeat(2, 1), torch.tensor([0, 0]), torch.tensor([0, 0]))
    assert mean_average_precision(twice, torch.tensor([0.9, 0.8]), true) == {"map@0.3": 0.5, "map@0.5": 0.5}
    half = Boxes(torch.tensor([[0.0, 0.0, 10.0, 4.0]]), torch.tensor([0]), torch.tensor([0]))
    assert mean_average_precision(half, torch.tensor([1.0]), true) == {"map@0.3": 0.5, "map@0.5": 0.0}
    nothing = Boxes(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long))
    assert mean_average_precision(nothing, torch.zeros(0), true) == {"map@0.3": 0.0, "map@0.5": 0.0}
    assert all(value != value for value in mean_average_precision(twice, torch.ones(2), nothing).values())


def test_only_the_most_confident_detections_of_an_image_count() -> None:
    """A right box after the hundredth detection of its image is not found."""
    true = Boxes(torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.tensor([0]), torch.tensor([0]))
    wrong = torch.tensor([[50.0, 50.0, 60.0, 60.0]]).repeat(MOST, 1)
    boxes = Boxes(torch.cat([wrong, true.boxes]), torch.zeros(MOST + 1).long(), torch.zeros(MOST + 1).long())
    confidence = torch.linspace(1, 0, MOST + 1)
    assert mean_average_precision(boxes, confidence, true)["map@0.5"] == 0
    assert mean_average_precision(boxes, 1 - confidence, true)["map@0.5"] == 1


def test_a_detection_takes_the_best_free_box() -> None:
    """The second detection cannot take the box of the first one, but another that it overlaps enough."""
    overlaps = torch.tensor([[0.6, 0.9], [0.5, 0.8], [0.6, 0.6]])
    assert matched(overlaps, 0.5).tolist() == [True, True, False]
    assert matched(overlaps, 0.55).tolist() == [True, False, True]
