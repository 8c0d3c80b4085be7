"""Tests the matching of objects with patches, the loss, and the heads against loops from their definitions."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from patchword.detector.head import PatchHeads, box_prior
from patchword.detector.matching import Objects, Weights, match, set_loss

WEIGHTS = Weights(classes=0.7, l1=1.3, giou=0.9, alpha=0.3, gamma=2.0)


def random_boxes(count: int, generator: torch.Generator) -> Tensor:
    return torch.cat([0.3 + 0.4 * torch.rand(count, 2, generator=generator), 0.1 + 0.3 * torch.rand(count, 2)], 1)


def giou(a: list[float], b: list[float]) -> float:
    """Generalized IoU of two boxes with center, width and height."""
    (al, at, ar, ab), (bl, bt, br, bb) = ((x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in (a, b))
    common = max(min(ar, br) - max(al, bl), 0) * max(min(ab, bb) - max(at, bt), 0)
    union = a[2] * a[3] + b[2] * b[3] - common
    around = (max(ar, br) - min(al, bl)) * (max(ab, bb) - min(at, bt))
    return common / union - (around - union) / around


def example(generator: torch.Generator) -> tuple[Tensor, Tensor, Objects]:
    """Two images of five patches, three queries; three objects in the first image, one in the second."""
    torch.manual_seed(1)
    objects = Objects(random_boxes(4, generator), torch.tensor([0, 0, 1, 0]), torch.tensor([0, 2, 1, 0]))
    logits = 2 * torch.randn(2, 5, 3, generator=generator)
    return logits, random_boxes(10, generator).view(2, 5, 4), objects


def cost(logits: Tensor, boxes: Tensor, objects: Objects, patch: int, k: int) -> float:
    a, b = boxes[patch].tolist(), objects.boxes[k].tolist()
    likely = 1 / (1 + math.exp(-float(logits[patch, objects.query[k]])))
    distance = sum(abs(x - y) for x, y in zip(a, b, strict=True))
    return -WEIGHTS.classes * likely + WEIGHTS.l1 * distance - WEIGHTS.giou * giou(a, b)


def best(logits: Tensor, boxes: Tensor, objects: Objects, own: list[int]) -> tuple[int, ...]:
    """The patches of the objects `own` with the lowest sum of costs, among all assignments."""
    return min(
        itertools.permutations(range(len(boxes)), len(own)),
        key=lambda patches: sum(cost(logits, boxes, objects, p, k) for p, k in zip(patches, own, strict=True)),
    )


def test_equals_all_assignments() -> None:
    """The matching has the lowest cost of all; each term of the loss equals a loop over it."""
    logits, boxes, objects = example(torch.Generator().manual_seed(0))
    matched: dict[tuple[int, int], int] = {}
    for n, own in ((0, [0, 1, 3]), (1, [2])):
        for patch, k in zip(best(logits[n], boxes[n], objects, own), own, strict=True):
            matched[n, patch] = k
    first = Objects(objects.boxes[[0, 1, 3]], torch.zeros(3).long(), objects.query[[0, 1, 3]])
    patch, number = match(logits[0], boxes[0], first, WEIGHTS)
    assert {(0, int(p)): [0, 1, 3][int(k)] for p, k in zip(patch, number, strict=True)} == {
        key: k for key, k in matched.items() if key[0] == 0
    }
    focal = distance = overlap = 0.0
    for n, p, q in itertools.product(range(2), range(5), range(3)):
        positive = (n, p) in matched and int(objects.query[matched[n, p]]) == q
        likely = 1 / (1 + math.exp(-float(logits[n, p, q])))
        share, weight = (likely, WEIGHTS.alpha) if positive else (1 - likely, 1 - WEIGHTS.alpha)
        focal -= weight * (1 - share) ** WEIGHTS.gamma * math.log(share)
    for (n, p), k in matched.items():
        a, b = boxes[n, p].tolist(), objects.boxes[k].tolist()
        distance += sum(abs(x - y) for x, y in zip(a, b, strict=True))
        overlap += 1 - giou(a, b)
    terms = set_loss(logits, boxes, objects, WEIGHTS)
    expected = {"class": 0.7 * focal / 4, "l1": 1.3 * distance / 4, "giou": 0.9 * overlap / 4}
    assert {name: float(value) for name, value in terms.items()} == pytest.approx(expected, rel=1e-5)


def test_the_loss_is_in_float32_under_autocast() -> None:
    """bfloat16 predictions give the loss of their float32 copies, with and without autocast."""
    logits, boxes, objects = example(torch.Generator().manual_seed(0))
    logits, boxes = logits.bfloat16(), boxes.bfloat16()
    expected = set_loss(logits.float(), boxes.float(), objects, WEIGHTS)
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            torch.testing.assert_close(set_loss(logits, boxes, objects, WEIGHTS), expected, rtol=0, atol=0)


def test_images_without_objects_and_too_many_objects() -> None:
    """An image without objects is background; if there are more objects than patches, some are not matched."""
    logits, boxes, objects = example(torch.Generator().manual_seed(0))
    none = Objects(objects.boxes[:0], objects.image[:0], objects.query[:0])
    terms = set_loss(logits, boxes, none, WEIGHTS)
    assert terms["l1"] == terms["giou"] == 0
    assert terms["class"] > 0
    patch, number = match(logits[0, :2], boxes[0, :2], objects, WEIGHTS)
    assert sorted(patch.tolist()) == [0, 1]
    assert len({*number.tolist()}) == 2


def test_heads() -> None:
    """Logits and boxes equal loops, and the first boxes are near the patches themselves."""
    torch.manual_seed(0)
    heads, patches, queries = PatchHeads(6), torch.randn(2, 6, 6), torch.randn(3, 6)
    with torch.no_grad():
        logits, boxes = heads(patches, (2, 3), queries)
        prior = box_prior((2, 3)).sigmoid()
    for n, p, q in itertools.product(range(2), range(6), range(3)):
        one = patches[n, p]
        similarity = torch.cosine_similarity(heads.embed(one), queries[q], dim=0)
        scale = torch.nn.functional.elu(heads.scale(one)) + 1
        wanted = scale * (similarity + heads.shift(one))
        assert float(logits[n, p, q]) == pytest.approx(wanted.item(), abs=1e-4)
    torch.testing.assert_close(prior[4], torch.tensor([0.5, 0.75, 1 / 3, 0.5]))
    assert (boxes - prior).abs().max() < 0.25
