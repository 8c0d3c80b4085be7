"""Tests connected components against scipy."""

import numpy as np
import pytest
import torch

from patchword.metrics.components import component_boxes, largest_box

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


@pytest.mark.parametrize("density", [0.1, 0.4, 0.6])
def test_the_boxes_of_all_components_equal_scipy(density):
    """Each component has one box, in its own image; an empty image has none."""
    images = torch.rand(20, 23, 17, generator=torch.Generator().manual_seed(0)) < density
    images[3] = False
    boxes, owner = component_boxes(images)
    expected = [
        (number, columns.start, rows.start, columns.stop, rows.stop)
        for number, image in enumerate(images.numpy())
        for rows, columns in ndimage.find_objects(ndimage.label(image)[0])
    ]
    found = torch.cat([owner[:, None], boxes.long()], 1).tolist()
    assert sorted(map(tuple, found)) == sorted(expected)
    assert component_boxes(images[3:4])[0].shape == (0, 4)


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
