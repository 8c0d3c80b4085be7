"""Tests the largest connected component against scipy."""

import numpy as np
import pytest
import torch

from patchword.metrics.components import largest_box

ndimage = pytest.importorskip("scipy.ndimage")


@pytest.mark.parametrize("density", [0.1, 0.4, 0.6, 0.9])
def test_equals_scipy(density):
    """Around the percolation threshold, components are long and winding, and labels must travel far."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(40, 23, 17, generator=generator) < density
    for box, image in zip(largest_box(images).tolist(), images.numpy(), strict=True):
        label, _ = ndimage.label(image)
        largest = 1 + np.bincount(label.ravel())[1:].argmax()
        rows, columns = ndimage.find_objects(label)[largest - 1]
        assert box == [columns.start, rows.start, columns.stop, rows.stop]


def test_a_spiral_is_one_component():
    """A spiral has the longest path that a label can travel."""
    image = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 0, 1], [1, 1, 1, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]]).bool()
    assert largest_box(image[None]).tolist() == [[0, 0, 5, 5]]


def test_images_do_not_touch():
    """The last row of an image is not the neighbor of the first row of the next."""
    images = torch.zeros(2, 3, 4, dtype=torch.bool)
    images[0, 2], images[1, 0, 1] = True, True
    assert largest_box(images).tolist() == [[0, 2, 4, 3], [1, 0, 2, 1]]


def test_nothing():
    """An empty image has an empty box; zero images have zero boxes."""
    assert largest_box(torch.zeros(2, 3, 4, dtype=torch.bool)).tolist() == [[0, 0, 0, 0]] * 2
    assert largest_box(torch.zeros(0, 3, 4, dtype=torch.bool)).shape == (0, 4)
