"""Random crops are inside the image, have the areas of CLIP's training or of views, and depend only on the seed."""

from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from patchword.data.augmentation import RATIO, SCALE, Views, random_crop
from patchword.errors import UserError


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


def ramp(side=100):
    """An image whose red is the column and whose green is the row."""
    places = np.arange(side, dtype=np.uint8) * 2
    red, green = np.meshgrid(places, places)
    return Image.fromarray(np.stack([red, green, np.zeros_like(red)], -1))


def shares(crops):
    """The shares of the image's area that crops of `ramp` show, from the range of their colors."""
    spans = (crops[:, :2].amax((2, 3)).double() - crops[:, :2].amin((2, 3))) / 198
    return spans.prod(-1)


def test_views_are_large_and_small_crops():
    """Large crops show more than 0.4 of the image and small ones between 0.05 and 0.4, anywhere in it."""
    large, small = Views(40, 60, distort=False).of(ramp(), 32, "bilinear", Random(0))
    assert (large.shape, small.shape) == ((40, 3, 32, 32), (60, 3, 32, 32))
    assert large.dtype == small.dtype == torch.uint8
    assert 0.35 < shares(large).min() < 0.5
    assert shares(large).max() > 0.85
    assert 0.02 < shares(small).min() < 0.1
    assert 0.3 < shares(small).max() < 0.45
    assert len({tuple(crop[:2, 16, 16].tolist()) for crop in small}) > 40


@pytest.mark.parametrize(("large", "small"), [(2, 0), (0, 3)])
def test_views_of_one_kind(large, small):
    found = Views(large, small, distort=False).of(ramp(), 16, "bilinear", Random(0))
    assert [crops.shape for crops in found] == [(large, 3, 16, 16), (small, 3, 16, 16)]


def test_distortions_are_dinos():
    """Half of all crops are mirrored, and a fifth is gray. A fifth of the large ones is solarized. The seed stays."""
    before = torch.get_rng_state()
    large, small = Views(200, 200).of(ramp(), 16, "bilinear", Random(0))
    assert torch.equal(torch.get_rng_state(), before)
    again = Views(200, 200).of(ramp(), 16, "bilinear", Random(0))
    assert torch.equal(torch.cat([large, small]), torch.cat(again))
    for crops in (large, small):
        gray = (crops[:, :1] == crops).all((1, 2, 3))
        assert 0.1 < gray.double().mean() < 0.3
        colored = crops[~gray][:, 0].double()
        mirrored = (colored[..., :4].mean((1, 2)) > colored[..., -4:].mean((1, 2))).double()
        assert 0.35 < mirrored.mean() < 0.7
    # White stays above 153 after all changes of color, and becomes dark only if it is solarized.
    large, small = Views(200, 200).of(Image.new("RGB", (20, 20), "white"), 16, "bilinear", Random(0))
    assert 0.1 < (large < 128).all((1, 2, 3)).double().mean() < 0.3
    assert small.min() > 150


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"global_crops": 0, "local_crops": 0}, "one of them 1 or more, not 0 and 0"),
        ({"local_crops": -1}, "must be 0 or more"),
        ({"scale": 0.01}, "views.scale must be above 0.05 and at most 1, not 0.01"),
    ],
)
def test_wrong_numbers_of_views_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Views(**options)
