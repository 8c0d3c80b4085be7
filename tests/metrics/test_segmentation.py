"""Tests both mIoUs and chance levels against torchmetrics and a loop in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex

from patchword.metrics.segmentation import IGNORED, NO_CLASS, areas, class_ious, expected_areas, segmentation

CLASSES = 7


def pictures(number: int = 5) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Random predictions and truths of different sizes; class 6 is neither predicted nor true, 5 never true."""
    generator = np.random.default_rng(0)
    found = []
    for i in range(number):
        size = (9 + i, 12 - i)
        truth = generator.choice([0, 1, 2, 3, 4, IGNORED], size)
        truth[truth == i] = 0  # not every class in every image
        predicted = np.where(generator.random(size) < 0.5, truth, generator.integers(0, 6, size)) % 7
        found.append((torch.from_numpy(predicted.astype(np.uint8)), torch.from_numpy(truth.astype(np.uint8))))
    return found


def test_equal_to_torchmetrics_and_a_loop() -> None:
    """The mIoU of the data set equals torchmetrics; the mIoU per image equals a loop over images and classes."""
    rows = torch.stack([areas(predicted, truth, CLASSES) for predicted, truth in pictures()])
    found = segmentation(*rows.unbind(1))
    peer = MulticlassJaccardIndex(CLASSES, ignore_index=IGNORED)
    of_images, right, counted = [], 0, 0
    for predicted, truth in pictures():
        peer.update(predicted.flatten().long(), truth.flatten().long())
        p, t = predicted.numpy(), truth.numpy()
        p, t = p[t != IGNORED], t[t != IGNORED]
        of_images.append(np.mean([((p == c) & (t == c)).sum() / ((p == c) | (t == c)).sum() for c in np.unique(t)]))
        right, counted = right + (p == t).sum(), counted + len(t)
    assert found["miou"] == pytest.approx(float(peer.compute()), abs=1e-6)
    assert found["miou_per_image"] == pytest.approx(np.mean(of_images))
    assert found["pixel_accuracy"] == pytest.approx(right / counted)


def test_each_class_is_equal_to_torchmetrics() -> None:
    """Class 6 is neither predicted nor true: 0 in torchmetrics, NaN here. Class 5 is predicted but never true."""
    rows = torch.stack([areas(predicted, truth, CLASSES) for predicted, truth in pictures()])
    found = class_ious(*rows.unbind(1))
    peer = MulticlassJaccardIndex(CLASSES, average=None, ignore_index=IGNORED)
    for predicted, truth in pictures():
        peer.update(predicted.flatten().long(), truth.flatten().long())
    torch.testing.assert_close(found[:6].float(), peer.compute()[:6])
    assert found[5] == 0
    assert found[6].isnan()
    assert segmentation(*rows.unbind(1))["miou"] == pytest.approx(float(found[:6].mean()))


def test_pixels_of_no_class() -> None:
    """In the ground truth every prediction on them is wrong; in a prediction they are a miss."""
    truth = torch.tensor([[0, 0, NO_CLASS, IGNORED]], dtype=torch.uint8)
    predicted = torch.tensor([[0, NO_CLASS, 0, 0]], dtype=torch.uint8)
    common, given, true = areas(predicted, truth, 2)
    assert (common.tolist(), given.tolist(), true.tolist()) == ([1, 0], [2, 0], [2, 0])
    found = segmentation(common[None], given[None], true[None])
    assert (found["miou"], found["pixel_accuracy"]) == (pytest.approx(1 / 3), 0.5)


def test_images_without_a_class_are_left_out() -> None:
    """An image without labeled pixels does not make the mean NaN."""
    rows = torch.tensor([[[3.0, 0], [3, 0], [3, 0]], [[0, 0], [0, 0], [0, 0]]], dtype=torch.float64)
    assert segmentation(*rows.unbind(1)) == {"miou": 1, "miou_per_image": 1, "pixel_accuracy": 1}


def test_chance_is_what_many_guesses_get() -> None:
    """The expected areas equal those of random guesses on a large image."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(4, (600, 500), generator=generator).clamp_min(1).to(torch.uint8)  # 1 twice as often
    guess = torch.randint(4, (600, 500), generator=generator).to(torch.uint8)
    rows = areas(guess, truth, 4)[:, None]
    candidates = torch.ones(1, 4, dtype=torch.bool)
    pixels = torch.tensor([300000.0], dtype=torch.float64)
    expected = segmentation(*expected_areas(rows[2], pixels, candidates), rows[2])
    assert segmentation(*rows) == pytest.approx(expected, abs=2e-3)
