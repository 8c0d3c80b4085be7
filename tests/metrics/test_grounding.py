"""Grounding against loops written from the definitions."""

import math

import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch.nn.functional import interpolate

from patchword.maps import upsample
from patchword.metrics import Grounding
from patchword.metrics.grounding import NAMES, box_iou, choice, ground, inside
from tests.metrics.examples import GRID, SIZE, maps_of, scenes

ndimage = pytest.importorskip("scipy.ndimage")


def measure(maps, batch):
    return ground(maps, GRID, batch.phrase_mask, batch.phrase_box, batch.phrase_caption)


def naive(maps, batch, n):
    """`NAMES`, for phrase n, pixel by pixel."""
    shape = maps[n].double().view(1, 1, *GRID)
    large = interpolate(shape, SIZE, mode="bilinear", align_corners=False)[0, 0].float()
    mask, (left, top, right, bottom) = batch.phrase_mask[n], batch.phrase_box[n].tolist()
    best = (large == large.max()).nonzero().tolist()
    in_mask = sum(bool(mask[y, x]) for y, x in best) / len(best)
    in_box = sum(left <= x + 0.5 < right and top <= y + 0.5 < bottom for y, x in best) / len(best)
    label, _ = ndimage.label((large >= (large.min() + large.max()) / 2).numpy())
    sizes = [(label == k).sum() for k in range(1, label.max() + 1)]
    rows, columns = ndimage.find_objects(label)[sizes.index(max(sizes))]
    common = max(0, min(right, columns.stop) - max(left, columns.start))
    common *= max(0, min(bottom, rows.stop) - max(top, rows.start))
    area = (columns.stop - columns.start) * (rows.stop - rows.start) + (right - left) * (bottom - top)
    hit = float(common / (area - common) >= 0.5)
    flat = mask.flatten(), large.flatten()
    rivals = [m for m in range(len(maps)) if batch.phrase_caption[m] == batch.phrase_caption[n] and m != n]
    chosen = float(all(large[mask].mean() > large[batch.phrase_mask[m]].mean() for m in rivals))
    ranking = average_precision_score(*flat), roc_auc_score(*flat)
    return [in_mask, in_box, hit, *ranking, chosen, 1 / (1 + len(rivals))]


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_equals_loops(levels):
    """Every number of every phrase, with many ties and with few."""
    batch = scenes(12)
    maps = maps_of(batch, levels=levels)
    maps += batch.phrase_mask.float().unfold(1, 5, 5).unfold(2, 4, 4).mean((-1, -2)).flatten(1).round()  # some hit
    values = measure(maps, batch)
    for n in range(len(maps)):
        assert values[n].tolist() == pytest.approx(naive(maps, batch, n), abs=1e-6), f"phrase {n}"
    assert (values[:, :6].amin(0) < 0.5).all()
    assert (values[:, :6].amax(0) > 0.5).all()


def test_constant_maps():
    """A map that says nothing earns nothing but what a random pixel would, at any constant."""
    batch = scenes(4)
    share = batch.phrase_mask.float().mean((1, 2))
    for constant in (0.0, 0.1, -7.3):
        values = dict(zip(NAMES, measure(torch.full_like(maps_of(batch), constant), batch).unbind(-1), strict=True))
        torch.testing.assert_close(values["pointing"], share)
        torch.testing.assert_close(values["average_precision"], share)
        assert (values["auroc"] == 0.5).all()
        assert (values["choice"] == 0).all()


def test_scale_of_a_map_does_not_matter():
    """Sources have different units: all numbers depend on the order and the shape of a map only."""
    batch = scenes(8)
    maps = maps_of(batch, levels=1000)
    torch.testing.assert_close(measure(4 * maps - 8, batch), measure(maps, batch))


def test_box_iou_equals_coco():
    """Against pycocotools, whose boxes are left, top, width, height."""
    coco = pytest.importorskip("pycocotools.mask")
    corner = torch.rand(20, 2) * 10
    boxes = torch.cat([corner, corner + torch.rand(20, 2) * 10], -1).double()
    other = boxes.roll(1, 0)
    sizes = [torch.cat([b[:, :2], b[:, 2:] - b[:, :2]], -1).numpy() for b in (boxes, other)]
    expected = torch.from_numpy(coco.iou(*sizes, [0] * 20)).diag()
    torch.testing.assert_close(box_iou(boxes, other), expected)


def test_inside_counts_pixel_centres():
    """Right and bottom are exclusive: a box of 2 x 3 pixels holds 6."""
    assert inside(torch.tensor([[1.0, 2.0, 3.0, 5.0]]), 8, 8).sum() == 6


def test_one_object_named_twice_is_no_rival():
    """Two phrases with one mask do not make each other's choice impossible; phrases of other captions never do."""
    masks = torch.zeros(4, 2, 2, dtype=torch.bool)
    masks[0, 0, 0] = masks[1, 0, 0] = masks[2, 1, 1] = masks[3, 0, 1] = True
    maps = torch.tensor([[3.0, 9.0, 0.0, 1.0]]).repeat(4, 1)
    won, chance = choice(maps, (2, 2), masks, torch.tensor([0, 0, 0, 1]))
    assert won.tolist() == [1, 1, 0, 1]
    torch.testing.assert_close(chance, torch.tensor([1 / 2, 1 / 2, 1 / 3, 1]))


def test_phrases_that_do_not_count():
    """Dropped phrases and invisible objects are counted apart and change no mean, but still compete in `choice`."""
    batch = scenes(4)
    maps = maps_of(batch, levels=1000)
    kept = torch.ones(len(maps), dtype=torch.bool)
    kept[1] = False
    batch.phrase_mask[4] = False
    metric = Grounding()
    metric.update(maps, GRID, batch, kept)
    kept[4] = False
    result, values = metric.compute(), measure(maps, batch)[kept].double().mean(0)
    assert (result["phrases"], result["dropped"]) == (len(maps) - 2, 2)
    assert result["auroc"] == pytest.approx(float(values[4]))
    assert result["choice_chance"] == pytest.approx(
        (2 / 3 + 3 / 3 + 2 / 2) / 7
    )  # captions of 3, 1 seen, 3 and 2 objects


def test_not_finite_maps_are_not_scored():
    """A model that diverged must not look like chance."""
    batch = scenes(2)
    maps = maps_of(batch)
    maps[0, 3] = torch.nan
    values = measure(maps, batch)
    assert values[0].isnan().all()
    assert values[1:].isfinite().all()


def test_only_captions_with_rivals_make_a_choice():
    """A caption with one object is always right and would flatter the mean."""
    batch = scenes(4, phrases=1 + 1)  # two phrases, one phrase, two, one
    maps = maps_of(batch, levels=1000)
    metric = Grounding()
    metric.update(maps, GRID, batch, torch.ones(len(maps), dtype=torch.bool))
    assert metric.compute()["choice_chance"] == 0.5


def test_batches_repeats_and_nothing():
    """In parts and with repeated samples as at once; without a phrase NaN and zero phrases."""
    whole, parts = Grounding(), Grounding()
    first, second, none = scenes(5), scenes(4, seed=1, first_id=5), scenes(2, first_id=90, phrases=0)
    for batch in (first, second):
        maps, kept = maps_of(batch), torch.ones(len(batch.phrase_caption), dtype=torch.bool)
        parts.update(maps, GRID, batch, kept)
        whole.update(maps, GRID, batch, kept)
    parts.update(maps_of(none), GRID, none, torch.ones(0, dtype=torch.bool))
    parts.update(maps_of(first), GRID, first, torch.ones(len(first.phrase_caption), dtype=torch.bool))
    assert parts.compute() == whole.compute()
    empty = Grounding()
    empty.update(maps_of(none), GRID, none, torch.ones(0, dtype=torch.bool))
    with pytest.warns(UserWarning, match="before the ``update``"):
        never = Grounding().compute()
    for result in (empty.compute(), never):
        assert result["phrases"] == 0
        assert math.isnan(result["auroc"])


def test_a_grid_that_does_not_fit():
    batch = scenes(1)
    with pytest.raises(ValueError, match="a grid of 2 x 2 does not hold maps of 12 patches"):
        ground(maps_of(batch), (2, 2), batch.phrase_mask, batch.phrase_box, batch.phrase_caption)


def test_box_of_the_larger_of_two_regions():
    """The region with more pixels above the middle of the range counts, not the one with the highest pixel."""
    batch = scenes(1, phrases=2)
    maps = torch.zeros(2, *GRID)
    maps[:, 0, 0] = 1.0
    maps[:, 2, 1:] = 0.9
    large = upsample(maps.flatten(1), GRID, SIZE)
    rows, columns = (large[0, 8:] >= 0.5).nonzero().unbind(-1)
    bottom = [columns.min(), rows.min() + 8, columns.max() + 1, rows.max() + 9]
    batch.phrase_box = torch.tensor([[float(x) for x in bottom], [0.0, 0.0, 4.0, 5.0]])
    assert measure(maps.flatten(1), batch)[:, NAMES.index("box_accuracy")].tolist() == [1, 0]
