"""Average precision of boxes equals that of pycocotools, and known answers."""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from patchword.metrics.detection import MOST, Boxes, category_precisions, matched, mean_average_precision


def of_coco(
    detected: Boxes, confidence: torch.Tensor, true: Boxes, threshold: float, crowds: Boxes | None = None
) -> float:
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
        annotated = [row | {"iscrowd": 0} for row in rows(true)]
        annotated += [] if crowds is None else [row | {"iscrowd": 1} for row in rows(crowds)]
        truth.dataset = data | {"annotations": [row | {"id": n + 1} for n, row in enumerate(annotated)]}
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


def near_boxes(true: Boxes, count: int, generator: torch.Generator, spread: float = 4) -> tuple[Boxes, torch.Tensor]:
    """Boxes near true ones, with other categories now and then, and their confidences, ordered by image."""
    near = torch.randint(0, len(true.boxes), (count,), generator=generator)
    boxes = true.boxes[near] + spread * torch.randn(count, 4, generator=generator)
    boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    other = torch.rand(count, generator=generator) < 0.3
    category = torch.where(other, torch.randint(0, 5, (count,), generator=generator), true.category[near])
    order = true.image[near].argsort(stable=True)  # COCO ranks equal confidences by image
    confidence = (torch.rand(count, generator=generator) * 1000).round() / 1000
    return Boxes(boxes, true.image[near], category)[order], confidence[order]


@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_crowds_are_those_of_coco(threshold: float) -> None:
    """A crowd leaves out any number of detections that lie in it, and only those that take no other box."""
    generator = torch.Generator().manual_seed(5)
    every = random_boxes(90, generator)
    detected, confidence = near_boxes(every, 400, generator)
    crowds, true = every[:30], every[30:]
    crowds.boxes[:, 2:] += 15
    found = mean_average_precision(detected, confidence, true, [threshold], crowds)[f"map@{threshold}"]
    assert found == pytest.approx(of_coco(detected, confidence, true, threshold, crowds), abs=1e-9)
    assert found > mean_average_precision(detected, confidence, true, [threshold])[f"map@{threshold}"] + 0.01


def of_voc(detected: Boxes, confidence: torch.Tensor, true: Boxes, difficult: Boxes, threshold: float) -> float:
    """AP of one category as VOC's development kit defines it: a loop over detections, and the area under precision."""
    taken, right, wrong = set(), [], []
    for n in (-confidence).argsort(stable=True).tolist():
        best, place = -1.0, None
        for kind, boxes in (("true", true), ("difficult", difficult)):
            for k in (boxes.image == detected.image[n]).nonzero()[:, 0].tolist():
                a, b = detected.boxes[n].tolist(), boxes.boxes[k].tolist()
                width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
                common = max(width, 0) * max(height, 0)
                overlap = common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)
                if overlap > best:
                    best, place = overlap, (kind, k)
        near = best >= threshold and place is not None
        if near and place[0] == "difficult":
            continue
        right.append(near and place not in taken)
        wrong.append(not right[-1])
        if near:
            taken.add(place)
    recall = [0.0, *(np.cumsum(right) / len(true.boxes)), 1.0]
    precision = [0.0, *(np.cumsum(right) / (np.cumsum(right) + np.cumsum(wrong))), 0.0]
    for n in reversed(range(len(precision) - 1)):
        precision[n] = max(precision[n], precision[n + 1])
    return sum((recall[n + 1] - recall[n]) * precision[n + 1] for n in range(len(recall) - 1))


@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_the_rule_of_voc_is_that_of_its_kit(threshold: float) -> None:
    """The nearest box decides, a taken box makes the next detection wrong, and a difficult box leaves it out."""
    generator = torch.Generator().manual_seed(6)
    every = random_boxes(120, generator)
    detected, confidence = near_boxes(every, 300, generator, spread=3)
    confidence = torch.rand(300, generator=generator)
    difficult, true = every[:40], every[40:]
    found = category_precisions(detected, confidence, true, [threshold], difficult, "voc")[threshold]
    of_coco_rule = category_precisions(detected, confidence, true, [threshold], difficult)[threshold]
    assert len(found) == 4
    for category, precision in found.items():
        own = detected.category == category
        parts = [boxes[boxes.category == category] for boxes in (true, difficult)]
        assert precision == pytest.approx(of_voc(detected[own], confidence[own], *parts, threshold), abs=1e-9)
        assert abs(precision - of_coco_rule[category]) > 1e-4


def test_a_confidence_that_is_no_number_is_the_lowest() -> None:
    """A model whose confidences are NaN does not rank its detections first."""
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    zero = torch.zeros(1, dtype=torch.long)
    detected = Boxes(torch.cat([box + 50, box]), zero.repeat(2), zero.repeat(2))
    found = mean_average_precision(detected, torch.tensor([torch.nan, -5.0]), Boxes(box, zero, zero))
    assert found == {"map@0.3": 1, "map@0.5": 1}


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
