"""Tests grounding against loops that follow the definitions."""

import math

import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch.nn.functional import interpolate

from patchword.maps.phrases import upsample
from patchword.metrics import Grounding
from patchword.metrics import targets as targets_module
from patchword.metrics.boxes import inside
from patchword.metrics.map_scores import COLUMNS, box_iou, choice, map_scores
from patchword.metrics.targets import Targets
from tests.metrics.examples import GRID, SIZE, maps_of, scenes

ndimage = pytest.importorskip("scipy.ndimage")


def targets(batch, kept=None):
    every = torch.ones(len(batch.phrase_caption), dtype=torch.bool)
    return Targets.of_batch(batch, every if kept is None else kept)


def measure(maps, batch):
    return map_scores(maps, GRID, targets(batch))[:, :7]


def update(metric, maps, batch, kept=None):
    found = targets(batch, kept)
    metric.update(map_scores(maps, GRID, found), found)


def naive(maps, batch, n):
    """The metrics `COLUMNS` of phrase n, computed pixel by pixel."""
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


def test_large_images_are_measured_on_fewer_pixels(monkeypatch):
    """A pixel then stands for a square of pixels, and belongs to the object if one of them does."""
    batch = scenes(8)
    found = targets(batch)
    monkeypatch.setattr("patchword.metrics.targets.MOST", 8)
    coarse = targets(batch)
    assert coarse.size == (8, 8)
    corners = [2 * k for k in range(8)]
    for n, mask in enumerate(found.masks):
        expected = [[bool(mask[y : y + 2, x : x + 2].any()) for x in corners] for y in corners]
        assert coarse.masks[n].tolist() == expected
    assert torch.equal(coarse.box * 2, found.box)
    assert torch.equal(coarse.boxes * 2, found.boxes)
    odd = torch.zeros(1, 5, 7, dtype=torch.bool)
    odd[0, 4, 6] = True
    assert targets_module._coarse(odd, 3).tolist() == [[[False] * 3, [False] * 2 + [True]]]


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_equals_loops(levels):
    """All metrics of all phrases equal the loop, with many ties and with few."""
    batch = scenes(12)
    maps = maps_of(batch, levels=levels)
    maps += batch.phrase_mask.float().unfold(1, 5, 5).unfold(2, 4, 4).mean((-1, -2)).flatten(1).round()  # some hit
    values = measure(maps, batch)
    for n in range(len(maps)):
        assert values[n].tolist() == pytest.approx(naive(maps, batch, n), abs=1e-6), f"phrase {n}"
    assert (values[:, :6].amin(0) < 0.5).all()
    assert (values[:, :6].amax(0) > 0.5).all()


def test_constant_maps():
    """A constant map gets the expected score of a random pixel, for any constant."""
    batch = scenes(4)
    share = batch.phrase_mask.float().mean((1, 2))
    for constant in (0.0, 0.1, -7.3):
        values = dict(zip(COLUMNS, measure(torch.full_like(maps_of(batch), constant), batch).unbind(-1), strict=False))
        torch.testing.assert_close(values["pointing_game"], share)
        torch.testing.assert_close(values["average_precision"], share)
        assert (values["auroc"] == 0.5).all()
        assert (values["object_choice"] == 0).all()


def test_scale_of_a_map_does_not_matter():
    """Sources have different units, so metrics depend only on the order and the shape of a map."""
    batch = scenes(8)
    maps = maps_of(batch, levels=1000)
    torch.testing.assert_close(measure(4 * maps - 8, batch), measure(maps, batch))


def test_box_iou_equals_coco():
    """IoU equals that of pycocotools, whose boxes are left, top, width, height."""
    coco = pytest.importorskip("pycocotools.mask")
    corner = torch.rand(20, 2) * 10
    boxes = torch.cat([corner, corner + torch.rand(20, 2) * 10], -1).double()
    other = boxes.roll(1, 0)
    sizes = [torch.cat([b[:, :2], b[:, 2:] - b[:, :2]], -1).numpy() for b in (boxes, other)]
    expected = torch.from_numpy(coco.iou(*sizes, [0] * 20)).diag()
    torch.testing.assert_close(box_iou(boxes, other), expected)


def test_inside_counts_pixel_centers():
    """Right and bottom are exclusive, so a box of 2 x 3 pixels has 6 pixels."""
    assert inside(torch.tensor([[1.0, 2.0, 3.0, 5.0]]), 8, 8).sum() == 6


def test_one_object_named_twice_is_no_rival():
    """Two phrases with the same mask name one object: with a third phrase there are two objects, and chance is 1/2."""
    masks = torch.zeros(4, 2, 2, dtype=torch.bool)
    masks[0, 0, 0] = masks[1, 0, 0] = masks[2, 1, 1] = masks[3, 0, 1] = True
    maps = torch.tensor([[3.0, 9.0, 0.0, 1.0]]).repeat(4, 1)
    boxes, number, kept = torch.zeros(4, 4), torch.arange(4), torch.ones(4, dtype=torch.bool)
    caption = torch.tensor([0, 0, 0, 1])
    found = Targets(
        masks, boxes, caption, boxes, number, kept, torch.stack([caption, number], -1), [None] * 4, [""] * 4
    )
    won, chance = choice(maps, (2, 2), found)
    assert won.tolist() == [1, 1, 0, 1]
    torch.testing.assert_close(chance, torch.tensor([1 / 2, 1 / 2, 1 / 2, 1]))


def test_phrases_that_do_not_count():
    """Dropped phrases and invisible objects do not change means; objects of dropped phrases remain candidates."""
    batch = scenes(4)
    maps = maps_of(batch, levels=1000)
    kept = torch.ones(len(maps), dtype=torch.bool)
    kept[1] = False
    batch.phrase_mask[4] = False
    metric = Grounding()
    update(metric, maps, batch, kept)
    kept[4] = False
    result, values = metric.compute(), measure(maps, batch)[kept].double().mean(0)
    assert (result["phrases"], result["dropped"]) == (len(maps) - 2, 2)
    assert result["auroc"] == pytest.approx(float(values[4]))
    assert result["object_choice_chance"] == pytest.approx(
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
    """A caption with one object is always right and would inflate the mean."""
    batch = scenes(4, phrases=1 + 1)  # two phrases, one phrase, two, one
    maps = maps_of(batch, levels=1000)
    metric = Grounding()
    update(metric, maps, batch, torch.ones(len(maps), dtype=torch.bool))
    assert metric.compute()["object_choice_chance"] == 0.5


def test_batches_repeats_and_nothing():
    """Several updates and repeated samples do not change the result; without phrases it is NaN with zero phrases."""
    whole, parts = Grounding(), Grounding()
    first, second, none = scenes(5), scenes(4, seed=1, first_id=5), scenes(2, first_id=90, phrases=0)
    for batch in (first, second):
        maps, kept = maps_of(batch), torch.ones(len(batch.phrase_caption), dtype=torch.bool)
        update(parts, maps, batch, kept)
        update(whole, maps, batch, kept)
    update(parts, maps_of(none), none, torch.ones(0, dtype=torch.bool))
    update(parts, maps_of(first), first, torch.ones(len(first.phrase_caption), dtype=torch.bool))
    assert parts.compute() == whole.compute()
    empty = Grounding()
    update(empty, maps_of(none), none, torch.ones(0, dtype=torch.bool))
    with pytest.warns(UserWarning, match="before the ``update``"):
        never = Grounding().compute()
    for result in (empty.compute(), never):
        assert result["phrases"] == 0
        assert math.isnan(result["auroc"])


def test_a_grid_that_does_not_fit():
    batch = scenes(1)
    with pytest.raises(ValueError, match="a grid of 2 x 2 does not hold maps of 12 patches"):
        map_scores(maps_of(batch), (2, 2), targets(batch))


def test_box_of_the_larger_of_two_regions():
    """The region with the most pixels above the midpoint counts, not the region with the highest pixel."""
    batch = scenes(1, phrases=2)
    maps = torch.zeros(2, *GRID)
    maps[:, 0, 0] = 1.0
    maps[:, 2, 1:] = 0.9
    large = upsample(maps.flatten(1), GRID, SIZE)
    rows, columns = (large[0, 8:] >= 0.5).nonzero().unbind(-1)
    bottom = [columns.min(), rows.min() + 8, columns.max() + 1, rows.max() + 9]
    batch.phrase_box = torch.tensor([[float(x) for x in bottom], [0.0, 0.0, 4.0, 5.0]])
    assert measure(maps.flatten(1), batch)[:, COLUMNS.index("box_accuracy")].tolist() == [1, 0]


def test_phrases_that_share_a_map_have_the_scores_of_separate_maps():
    """Work is shared among equal maps; a tiny difference separates them without changing any score."""
    batch = scenes(8)
    shared = maps_of(batch, levels=4)[torch.arange(20) % 3]
    apart = shared * (1 + torch.arange(20)[:, None] / 8)
    assert len(shared.unique(dim=0)) == 3
    torch.testing.assert_close(measure(shared, batch), measure(apart, batch), rtol=0, atol=1e-6)


def test_sizes_of_masks():
    """A mask of 1/16 of the image is medium, of 1/4 large; each size has its own means."""
    batch = scenes(2, phrases=2)
    batch.phrase_mask = torch.zeros(3, 16, 16, dtype=torch.bool)
    for n, side in enumerate((3, 4, 8)):
        batch.phrase_mask[n, :side, :side] = True
    maps = maps_of(batch, levels=1000)
    metric = Grounding()
    update(metric, maps, batch)
    found, values = metric.compute(), measure(maps, batch)
    for n, size in enumerate(("small", "medium", "large")):
        assert found[f"phrases_{size}"] == 1
        assert found[f"average_precision_{size}"] == pytest.approx(float(values[n, 3]))
        assert found[f"pointing_game_{size}"] == pytest.approx(float(values[n, 0]))
