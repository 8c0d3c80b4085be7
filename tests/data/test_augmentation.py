"""Random crops are inside the image, have the areas and shapes of CLIP's training, and depend only on the seed."""

from random import Random

import pytest

from patchword.data.tables.augmentation import RATIO, SCALE, random_crop


def crops(width, height, count=300):
    random = Random(0)
    return [random_crop(width, height, 16, "bicubic", random).source for _ in range(count)]


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (400, 400)])
def test_areas_and_shapes(width, height):
    """A crop that fits has an allowed area and shape, and can be anywhere in the image."""
    found = crops(width, height)
    for left, top, right, bottom in found:
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        share = (right - left) * (bottom - top) / (width * height)
        assert SCALE[0] - 0.01 < share <= SCALE[1]
        assert RATIO[0] - 0.01 < (right - left) / (bottom - top) < RATIO[1] + 0.01
    assert len(set(found)) > 150
    assert {left == 0 for left, *_ in found} == {True, False} or width < height


@pytest.mark.parametrize(("width", "height"), [(1000, 10), (10, 1000), (1, 300), (1, 1)])
def test_narrow_images(width, height):
    """If no crop fits, the result is the widest allowed crop at the center."""
    for left, top, right, bottom in crops(width, height, 5):
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        assert abs(left + right - width) <= 1
        assert abs(top + bottom - height) <= 1


def test_the_distribution_is_torchvisions():
    """Means and deviations of position and size agree with RandomResizedCrop."""
    import torch
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    image = torch.zeros(3, 375, 500)
    theirs = torch.tensor([RandomResizedCrop.get_params(image, SCALE, RATIO) for _ in range(3000)]).double()
    boxes = torch.tensor(crops(500, 375, 3000)).double()
    ours = torch.stack([boxes[:, 1], boxes[:, 0], boxes[:, 3] - boxes[:, 1], boxes[:, 2] - boxes[:, 0]], -1)
    torch.testing.assert_close(ours.mean(0), theirs.mean(0), rtol=0.05, atol=0.5)
    torch.testing.assert_close(ours.std(0), theirs.std(0), rtol=0.08, atol=0.5)


def test_the_seed_decides():
    assert crops(500, 375) == crops(500, 375)
