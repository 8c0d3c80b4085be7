"""Tests zero-shot segmentation: published layouts, windows, backgrounds, ties, and both mIoUs."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import natural_layout
from PIL import Image
from rich.console import Console

from patchword.callbacks.suite_table import suite_table
from patchword.data.pixels import Preprocessing
from patchword.errors import UserError
from patchword.objectives import CLIP
from patchword.ops import cosine
from patchword.suites import VOC20, VOC21, ADE20k, Cityscapes, CocoObject, CocoStuff, Context59, Context60, MSRCv2
from patchword.suites import segmentation as segmentation_module
from patchword.suites import windows as windows_module
from patchword.suites.files import Framing
from patchword.suites.segmentation import Labeling, Segmentation
from patchword.suites.windows import Canvas, label_pixels, one_view, resize, sliding_windows, stitch
from tests import tiny
from tests.ranks import on_ranks
from tests.suites import published_regions as published
from tests.suites.color_model import model
from tests.suites.published_regions import TRUE

FRAMING = Framing(Preprocessing("stretch", interpolation="nearest"), 16)
ONE_VIEW = Labeling(prompts="label", upsampling="nearest", short_side=None)
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "objectives.json").read_text())


def measure(suite: Segmentation, module: Any, order: list[int] | None = None) -> dict[str, float]:
    """The metrics of a suite on the given samples."""
    data = suite.read(FRAMING)
    evaluation = suite.evaluation(module)
    for index in range(len(data)) if order is None else order:  # type: ignore[arg-type]
        evaluation.update(suite.collate([data[index]]))
    return evaluation.compute()


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(published.voc(tmp_path_factory.mktemp("voc")))


VOC = {"aeroplane": 1, "bicycle": 2}
PERSON = {"person": 1, "bicycle": 2}


def test_every_suite_reads_its_layout(tmp_path: Path, voc: str) -> None:
    """A model knows the gray values of two classes; its metrics follow from `SEEN`, `TRUE` and the border."""
    root = str(published.context(tmp_path / "context"))
    words = {"aeroplane": 1, "bag": 2}
    # Images have 32 x 16 pixels, so a half has 256. Class 1 is seen in the left of image 0 and the top of image 2.
    # For unknown gray values all classes tie, and no class is predicted.
    for suite, grays, lost in (
        (VOC20(voc, labeling=ONE_VIEW), VOC, 16),
        (Context59(root, labeling=ONE_VIEW), words, 0),
        (CocoStuff(str(published.coco_stuff(tmp_path / "coco")), ONE_VIEW), {"person": 1, "wood": 2}, 0),
        (ADE20k(str(published.ade20k(tmp_path / "ade")), ONE_VIEW), {"wall": 1, "building": 2}, 0),
        (MSRCv2(str(published.msrc(tmp_path / "msrc")), labeling=ONE_VIEW), {"building": 1, "grass": 2}, 0),
        (CocoObject(str(published.coco_instances(tmp_path / "objects")), labeling=ONE_VIEW), PERSON, 0),
        (Cityscapes(str(published.cityscapes(tmp_path / "cities")), ONE_VIEW), {"road": 1, "bicycle": 2}, 0),
    ):
        found = measure(suite, model(grays))
        half = 256 - lost
        top = 256 - (lost and 16)  # the border of the image that is 16 pixels wide
        assert found["images"] == 3
        assert found["miou"] == pytest.approx(((half + top) / (2 * half + top) + 1) / 2), suite.key
        assert found["miou_per_image"] == pytest.approx((1 + 1 / 2 + 1) / 3)
        assert found["pixel_accuracy"] == pytest.approx((3 * half + top) / (4 * half + top))
        assert set(suite.definitions) == {name for name in found if not name.startswith("chance_")} - {
            "images",
            "classes",
            "cut_prompts",
        }
    assert [suite.key for suite in (VOC20(voc), Context59(root), Context60(root, 0.5))] == [
        "voc20_val_own",
        "context59_val_own",
        "context60_val_own",
    ]


def test_backgrounds(voc: str) -> None:
    """A prediction on background does not count (`ignore`) or is wrong (`count`); with a threshold it is a class."""
    grays = {"aeroplane": 1, "bicycle": 2, "bird": 4}  # image 2 shows a bird on its background
    half, void = 240, 16
    ignored = measure(VOC20(voc, labeling=ONE_VIEW), model(grays))
    counted = measure(VOC20(voc, "count", labeling=ONE_VIEW), model(grays))
    # aeroplane: 240 + 240 of 3 x 240 pixels; bicycle: all; bird: predicted on background only.
    plane = (half + half) / (half + half + half)
    assert ignored["miou"] == pytest.approx((plane + 1) / 2)
    assert counted["miou"] == pytest.approx((plane + 1 + 0) / 3)
    assert counted["pixel_accuracy"] == ignored["pixel_accuracy"]
    del grays["bird"]
    whole = 256
    background = measure(VOC21(voc, 0.5, labeling=ONE_VIEW), model(grays))
    # Unknown gray values score 0: background is right at the bottom of image 2, wrong on the right of image 1.
    assert background["miou"] == pytest.approx((plane + 1 + whole / (whole + half)) / 3)
    assert background["classes"] == 21
    assert void == whole - half
    none = measure(VOC21(voc, 2.0, labeling=ONE_VIEW), model(grays))
    assert none["pixel_accuracy"] == pytest.approx(whole / (5 * half + whole))


def test_each_class_has_its_numbers(voc: str) -> None:
    """There is one row per class, and background is the last class if it is one; values as in `test_backgrounds`."""
    grays = {"aeroplane": 1, "bicycle": 2}
    foreground, background = VOC20(voc, labeling=ONE_VIEW), VOC21(voc, 0.5, labeling=ONE_VIEW)
    assert foreground.per_class == []
    for suite in (foreground, background):
        found = measure(suite, model(grays))
        names = [row["class"] for row in suite.per_class]
        assert names == [name for (name,) in suite.names] + ["background"] * (suite is background)
        ious = [row["iou"] for row in suite.per_class if not np.isnan(row["iou"])]
        assert found["miou"] == pytest.approx(np.mean(ious))
    plane, bicycle, bird = foreground.per_class[:3]
    assert plane == {
        "class": "aeroplane",
        "iou": pytest.approx(2 / 3),
        "pixel_accuracy": pytest.approx(2 / 3),
        "images": 3,
        "true_pixels": 720,
        "predicted_pixels": 480,
    }
    assert (bicycle["iou"], bicycle["images"], bicycle["predicted_pixels"]) == (1, 2, 480)
    assert (bird["images"], bird["true_pixels"], bird["predicted_pixels"]) == (0, 0, 0)
    assert np.isnan(bird["iou"])
    assert background.per_class[-1]["true_pixels"] == 256


def test_threshold_on_the_softmax(voc: str) -> None:
    """At temperature 1 a known class among 20 has e / (e + 19), and unknown pixels have 1 / 20."""
    share = float(np.e / (np.e + 19))
    below, above = (measure(VOC21(voc, share + d, 1.0, labeling=ONE_VIEW), model(VOC)) for d in (-1e-4, 1e-4))
    assert below["pixel_accuracy"] == measure(VOC21(voc, 0.5, labeling=ONE_VIEW), model(VOC))["pixel_accuracy"]
    assert above["pixel_accuracy"] == pytest.approx(256 / (5 * 240 + 256))


def test_candidates_of_the_image(voc: str) -> None:
    """Only classes in the image are predicted, so bird is not a candidate."""
    grays = {"aeroplane": 1, "bicycle": 2, "bird": 2}
    labeling = Labeling(prompts="label", upsampling="nearest", short_side=None, candidates="image")
    found = measure(VOC20(voc, labeling=labeling), model(grays))
    assert measure(VOC20(voc, labeling=ONE_VIEW), model(grays))["pixel_accuracy"] < found["pixel_accuracy"]
    # Image 1 shows 2 and 3, and its truth is 2 and 1: 2 is found, 3 ties. Image 2 has only one candidate.
    assert found["pixel_accuracy"] == pytest.approx(4 / 5)
    assert found["chance_pixel_accuracy"] == pytest.approx((1 / 2 + 1 / 2 + 1 / 2 + 1 / 2 + 1) / 5)


def test_batches_and_repeats_do_not_matter(voc: str) -> None:
    """Windows can be encoded one by one or together; a repeated image counts once."""
    labeling = Labeling(prompts="label", short_side=24, stride=7)
    found = measure(VOC20(voc, labeling=labeling), model(VOC))
    assert measure(VOC20(voc, labeling=labeling, batch_size=1), model(VOC)) == pytest.approx(found)
    assert measure(VOC20(voc, labeling=labeling), model(VOC), [0, 1, 2, 0, 0]) == pytest.approx(found)
    assert 0 < found["miou"] < 1


def test_worker_processes_get_no_trainer(voc: str) -> None:
    """The data set has no reference to the suite, because the suite's trainer cannot be sent to a process."""
    assert not any(isinstance(value, VOC20) for value in vars(VOC20(voc).read(FRAMING)).values())


def measure_rank(rank: int, root: str, shares: list[list[int]]) -> dict[str, float]:
    return measure(VOC20(root, labeling=ONE_VIEW), model(VOC), shares[rank])


def test_two_ranks_measure_what_one_does(voc: str) -> None:
    """The second rank's sampler repeats the first image."""
    expected = measure(VOC20(voc, labeling=ONE_VIEW), model(VOC))
    for found in on_ranks(measure_rank, voc, [[0, 2], [1, 0]]):
        assert found == pytest.approx(expected)


@pytest.mark.parametrize(("width", "height", "short", "stride"), [(50, 37, 20, 5), (37, 90, 16, 16), (16, 16, 16, 3)])
def test_windows_cover_the_image(width: int, height: int, short: int, stride: int) -> None:
    """Windows cover every pixel and stay inside the image; all except the last are `stride` apart."""
    canvas, views = sliding_windows(width, height, FRAMING, short, stride)
    covered = np.zeros((canvas.height, canvas.width), dtype=int)
    for (top, left), view in zip(canvas.corners, views, strict=True):
        covered[top : top + 16, left : left + 16] += 1
        assert 0 <= left <= canvas.width - 16
        assert 0 <= top <= canvas.height - 16
        assert view.source[0] == pytest.approx(left * width / canvas.width)
        assert view.source[2] - view.source[0] == pytest.approx(16 * width / canvas.width)
        assert view.source[2] <= width
        assert view.source[3] <= height
    assert covered.min() >= 1
    assert min(canvas.height, canvas.width) == short
    tops = sorted({top for top, _ in canvas.corners})
    assert all(b - a == stride for a, b in itertools.pairwise(tops[:-1]))


@pytest.mark.parametrize("how", ["bilinear", "nearest"])
def test_stitching_equals_a_loop(how: Any) -> None:
    """Each pixel has the mean, over its windows, of the interpolated scores of their patches."""
    torch.manual_seed(0)
    grid = (4, 4)
    canvas, views = sliding_windows(50, 37, FRAMING, 20, 7)
    scores = torch.randn(len(views), 16, 3)
    found = stitch(scores, grid, canvas, how)
    for y, x, c in ((0, 0, 0), (3, 11, 1), (19, 26, 2), (10, 13, 0), (16, 5, 1)):
        values = [
            at(scores[w, :, c].reshape(grid), (y - top + 0.5) / 4 - 0.5, (x - left + 0.5) / 4 - 0.5, how)
            for w, (top, left) in enumerate(canvas.corners)
            if top <= y < top + 16 and left <= x < left + 16
        ]
        assert float(found[c, y, x]) == pytest.approx(np.mean(values), abs=1e-5)


@pytest.mark.parametrize("how", ["bilinear", "nearest"])
def test_resizing_goes_by_pixel_centers(how: Any) -> None:
    """This also holds if one size is not a multiple of the other; mode "nearest" would use a pixel's corner."""
    maps = torch.randn(1, 3, 4)
    found = resize(maps, (5, 7), how)[0]
    expected = [
        [at(maps[0], (y + 0.5) * 3 / 5 - 0.5, (x + 0.5) * 4 / 7 - 0.5, how) for x in range(7)] for y in range(5)
    ]
    torch.testing.assert_close(found, torch.tensor(expected))


def at(values: torch.Tensor, y: float, x: float, how: str) -> float:
    """The value at one point of a map, between the centers of its patches."""
    height, width = values.shape
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    if how == "nearest":
        return float(values[int(y + 0.5), int(x + 0.5)])
    i, j = min(int(y), height - 2), min(int(x), width - 2)
    a, b = y - i, x - j
    top = (1 - b) * values[i, j] + b * values[i, j + 1]
    return float((1 - a) * top + a * ((1 - b) * values[i + 1, j] + b * values[i + 1, j + 1]))


@pytest.mark.parametrize("memory", [1, 2**24])
@pytest.mark.parametrize("temperature", [None, 0.1])
def test_labels_equal_an_argmax_of_all(memory: int, temperature: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small and large blocks of classes give the same labels, scores and softmax."""
    monkeypatch.setattr(windows_module, "_MEMORY", memory)
    torch.manual_seed(0)
    canvas, views = sliding_windows(50, 37, FRAMING, 20, 7)
    scores = torch.randn(len(views), 16, 9)
    label, best = label_pixels(scores, (4, 4), canvas, (37, 50), temperature=temperature)
    pixels = resize(stitch(scores, (4, 4), canvas, "bilinear"), (37, 50), "bilinear")
    assert torch.equal(label.long(), pixels.argmax(0))
    expected = pixels if temperature is None else (pixels / temperature).softmax(0)
    torch.testing.assert_close(best, expected.amax(0))


@pytest.mark.parametrize("memory", [1, 2**24])
def test_ties_and_nan_give_no_class(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Constant scores do not predict the first class, for any block size."""
    monkeypatch.setattr(windows_module, "_MEMORY", memory)
    canvas = Canvas(1, 4, (1, 4), [(0, 0)])
    scores = torch.tensor([[[1.0, 1, 0], [0, 2, 1], [1, 2, 2], [3, torch.nan, 1]]])
    label, _ = label_pixels(scores, (1, 4), canvas, (1, 4), "nearest")
    assert label.tolist() == [[254, 1, 254, 254]]


@pytest.mark.parametrize("expected", GOLDEN["objectives"]["segmentation"], ids=lambda expected: expected["case"])
def test_golden(expected: dict[str, Any]) -> None:
    """Patches are assigned the class with the highest cosine."""
    case = GOLDEN["cases"][expected["case"]]
    patches, classes = (torch.tensor(case[name], dtype=torch.float64) for name in ("patches", "prototypes"))
    for image, labels in zip(patches, expected["expected"]["labels"], strict=True):
        size = (1, len(image))
        canvas = Canvas(*size, size, [(0, 0)])
        found, _ = label_pixels(cosine(image, classes)[None], size, canvas, size, "nearest")
        assert found[0].tolist() == labels


def test_maps_of_the_objective(voc: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`align` equals a loop over pairs, averaged over the tokens of a name and the prompts of a class."""
    monkeypatch.setattr(segmentation_module, "_BLOCK", 3)
    module = tiny.module(CLIP()).eval()
    (tmp_path / "templates.txt").write_text("a red {}.\nthe {} on grass")
    (tmp_path / "names.txt").write_text("apple, red cup\n" + "book\n" * 19)
    labeling = Labeling("align", str(tmp_path / "templates.txt"), str(tmp_path / "names.txt"), several_names="mean")
    suite = VOC20(voc, labeling=labeling)
    with torch.no_grad():
        evaluation = suite.evaluation(module)
        images = module.encode_images(torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8))
        found = evaluation.patch_scores(images)
        assert found.shape == (2, 64, 20)
        total = torch.zeros(64)
        for prompt, words in (
            ("a red apple.", {"apple"}),
            ("the apple on grass", {"apple"}),
            ("a red red cup.", {"red", "cup"}),
            ("the red cup on grass", {"red", "cup"}),
        ):
            texts, tokens = module.encode_texts([prompt])
            maps = module.objective.align(images[:1], texts)[0]
            start = prompt.index("red cup") if "cup" in prompt else prompt.index("apple")
            own = [
                m
                for m, (a, b) in zip(maps, tokens.spans[0].tolist(), strict=True)
                if b > a >= start and prompt[a:b].strip() in words
            ]
            assert len(own) == len(words)
            total += torch.stack(own).mean(0) / 4
    torch.testing.assert_close(found[0, :, 0], total)


def test_class_names_are_the_published_ones(voc: str, tmp_path: Path) -> None:
    """The classes of VOC and COCO's things equal torchvision's; things that no image shows are left out."""
    from torchvision.models._meta import _COCO_CATEGORIES, _VOC_CATEGORIES

    assert [name.replace(" ", "") for (name,) in VOC20(voc).names] == _VOC_CATEGORIES[1:]
    stuff = CocoStuff(str(published.coco_stuff(tmp_path)))
    values = stuff.labels()
    things = {value: name for value, name in enumerate(_COCO_CATEGORIES[1:]) if name != "N/A"}
    assert {value: stuff.names[values[value]][0] for value in range(91) if values[value] < 200} == things
    assert [stuff.names[values[value]][0] for value in (91, 123, 155, 181)] == ["banner", "grass", "shelf", "wood"]
    assert [len(suite.names) for suite in (stuff, Context59("x"), ADE20k("x"))] == [171, 59, 150]
    assert [name for (name,) in CocoObject("x").names] == [*things.values()]
    assert [name for (name,) in Context59("x").names] == sorted(name for (name,) in Context59("x").names)
    assert [ADE20k("x").names[i][0] for i in (0, 12, 149)] == ["wall", "person", "flag"]


def test_ground_truth_of_msrc(tmp_path: Path) -> None:
    """Classes that are left out are ignored and not predicted, a list selects images, and other colors are errors."""
    root = str(published.msrc(tmp_path))
    suite = MSRCv2(root, "Test.txt", left_out=["building"])
    assert [image.name for image, _ in suite.files()] == ["1_3_s.bmp", "1_1_s.bmp"]
    assert (suite.key, len(suite.names), suite.names[0]) == ("msrc_v2_test", 22, ["grass"])
    np.testing.assert_array_equal(suite.labels()[suite.label_map(suite.files()[1][1])], np.where(TRUE[0] == 2, 0, 255))
    assert [len(MSRCv2(root, left_out=left_out).names) for left_out in ((), ("horse", "mountain"))] == [23, 21]
    with pytest.raises(UserError, match="'zebra' is no class"):
        MSRCv2(root, left_out=["zebra"])
    Image.new("RGB", (32, 16), (1, 2, 3)).save(tmp_path / "GroundTruth/1_1_s_GT.bmp")
    with pytest.raises(UserError, match=r"1_1_s_GT.bmp has the color \(1, 2, 3\)"):
        suite.label_map(tmp_path / "GroundTruth/1_1_s_GT.bmp")
    with pytest.raises(UserError, match="no ground truth"):
        MSRCv2(str(tmp_path / "Images")).files()


@pytest.mark.parametrize(("candidates", "right", "building"), [("dataset", 128, 128 / 768), ("image", 256, 256 / 768)])
def test_class_mean_maps_of_msrc(tmp_path: Path, candidates: Any, right: int, building: float) -> None:
    """One training image has grass on the left and a building on the right; the test images have the opposite, and a
    building above void. Lists with a common image are an error.
    """
    root = published.msrc(tmp_path)
    (root / "Train.txt").write_text("1_2_s.bmp\n")
    suite = MSRCv2(str(root), "Test.txt", "Train.txt", labeling=replace(ONE_VIEW, candidates=candidates))
    found = measure(suite, model({"building": 1, "grass": 2}))
    assert found["class_prior_pixel_accuracy"] == pytest.approx(right / 768)
    assert found["class_prior_miou"] == pytest.approx(building / 2)  # grass is never right
    assert found["class_prior_miou_per_image"] == pytest.approx((0 + right / 256) / 2)
    shown = Console(width=200, record=True)
    shown.print(suite_table(suite, found))
    assert f"{right / 768:.4f}" in shown.export_text()
    assert "class mean map" not in str(measure(MSRCv2(str(root), "Test.txt", labeling=ONE_VIEW), model({})))
    (root / "Train.txt").write_text("1_2_s.bmp\n1_3_s.bmp\n")
    with pytest.raises(UserError, match=r"Train.txt has the image 1_3_s_GT.bmp, which is tested"):
        suite.training_labels()


def test_msrc_laid_out_has_the_label_maps_of_its_copy(tmp_path: Path) -> None:
    """The colors of all classes are those that the script derives in another way, and its lists select images."""
    copy, root = tmp_path / "copy", tmp_path / "msrc_v2"
    root.mkdir()
    values = np.arange(24, dtype=np.uint8).reshape(4, 6).repeat(2, 0)
    for name in ("1_1_s", "1_2_s"):
        published.gray(copy / f"images/{name}.jpg", 3, (6, 8))
        published.label_map(copy / f"masks/{name}.png", values)
    splits = {"1_1_s": "train", "1_2_s": "test"}
    records = [{"file": f"{name}.jpg", "mask": f"{name}.png", "split": split} for name, split in splits.items()]
    (copy / "labels.jsonl").write_text("\n".join(map(json.dumps, records)))
    natural_layout.msrc_v2(copy, root)
    ((image, truth),) = MSRCv2(str(root), "Test.txt").files()
    assert image == root / "Images/1_2_s.bmp"
    np.testing.assert_array_equal(MSRCv2.label_map(truth), values)
    with Image.open(image) as written, Image.open(copy / "images/1_2_s.jpg") as original:
        assert written.tobytes() == original.tobytes()


def test_label_maps_of_coco_instances(tmp_path: Path) -> None:
    """The smaller instance lies above the larger one, a crowd is ignored where there is no instance."""
    path = published.coco_instances(tmp_path) / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    shape = {"image_id": 632, "segmentation": [[4, 4, 8, 4, 8, 8, 4, 8]], "bbox": [4, 4, 4, 4]}
    small = {"id": 90, "category_id": 80, "iscrowd": 0, "area": 16} | shape
    runs = {"counts": [32 * 15 + 4, 20, 8], "size": [32, 16]}  # the last column, from pixel 4 to pixel 23
    crowd = {"id": 91, "image_id": 632, "category_id": 1, "iscrowd": 1, "area": 20, "bbox": [15, 4, 1, 20]}
    content["annotations"] = [small, *content["annotations"], crowd | {"segmentation": runs}]
    path.write_text(json.dumps(content))
    expected = np.zeros((32, 16), dtype=np.uint8)
    expected[4:24, 15] = 255
    expected[:16] = 1
    expected[4:8, 4:8] = 80
    suite = CocoObject(str(tmp_path), threshold=0.5)
    image, outlines = suite.files()[2]
    assert image.name == "000000000632.jpg"
    np.testing.assert_array_equal(suite.label_map(outlines), expected)
    assert suite.labels()[[0, 1, 80, 255]].tolist() == [80, 0, 79, 255]
    assert CocoObject(str(tmp_path)).labels()[[0, 1]].tolist() == [255, 0]
    runs["counts"][0] += 1
    path.write_text(json.dumps(content | {"annotations": [crowd | {"segmentation": runs}]}))
    with pytest.raises(UserError, match=r"images\[2\]: the runs of a crowd"):
        suite.label_map(suite.files()[2][1])


def test_one_view_stretches_the_image() -> None:
    """The complete image is in view for every aspect ratio."""
    canvas, (view,) = one_view(50, 37, FRAMING)
    assert view.source == (0, 0, 50, 37)
    assert (canvas.height, canvas.width) == canvas.window == (37, 50)
