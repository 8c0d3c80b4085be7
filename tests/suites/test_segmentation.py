"""Guards zero-shot segmentation: published layouts, windows, backgrounds, ties, and both mIoUs."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from patchword.data.pixels import Preprocessing
from patchword.objectives import CLIP
from patchword.ops import cosine
from patchword.suites import VOC20, VOC21, ADE20k, CocoStuff, Context59, Context60
from patchword.suites import segmentation as segmentation_module
from patchword.suites import windows as windows_module
from patchword.suites.files import Framing
from patchword.suites.segmentation import Labelling, Segmentation
from patchword.suites.windows import Canvas, label_pixels, one_view, resize, sliding_windows, stitch
from tests import tiny
from tests.ranks import on_ranks
from tests.suites import published_regions as published
from tests.suites.colour_model import model

FRAMING = Framing(Preprocessing("stretch", interpolation="nearest"), 16)
ONE_VIEW = Labelling(prompts="label", upsampling="nearest", short_side=None)
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "objectives.json").read_text())


def measure(suite: Segmentation, module: Any, order: list[int] | None = None) -> dict[str, float]:
    """What a suite measures, of the samples that a sampler hands out."""
    data = suite.read(FRAMING)
    evaluation = suite.evaluation(module)
    for index in range(len(data)) if order is None else order:  # type: ignore[arg-type]
        evaluation.update(suite.collate([data[index]]))
    return evaluation.compute()


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(published.voc(tmp_path_factory.mktemp("voc")))


VOC = {"aeroplane": 1, "bicycle": 2}


def test_every_suite_reads_its_layout(tmp_path: Path, voc: str) -> None:
    """A model that knows the greys of two classes: what it gets follows from `SEEN` and `TRUE`, and from the border."""
    root = str(published.context(tmp_path / "context"))
    words = {"aeroplane": 1, "bag": 2}
    # Images of 32 x 16 pixels, halves of 256. Class 1 is seen in image 0, left, and 2, top; where nothing is known
    # all 20 classes tie, and no class is given.
    for suite, greys, lost in (
        (VOC20(voc, labelling=ONE_VIEW), VOC, 16),
        (Context59(root, labelling=ONE_VIEW), words, 0),
        (CocoStuff(str(published.coco_stuff(tmp_path / "coco")), ONE_VIEW), {"person": 1, "wood": 2}, 0),
        (ADE20k(str(published.ade20k(tmp_path / "ade")), ONE_VIEW), {"wall": 1, "building": 2}, 0),
    ):
        found = measure(suite, model(greys))
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
        "voc20_val",
        "context59_val",
        "context60_val",
    ]


def test_backgrounds(voc: str) -> None:
    """A prediction on background costs nothing (`ignore`), or precision (`count`); by threshold it is a class."""
    greys = {"aeroplane": 1, "bicycle": 2, "bird": 4}  # image 2 shows a bird on its background
    half, void = 240, 16
    ignored = measure(VOC20(voc, labelling=ONE_VIEW), model(greys))
    counted = measure(VOC20(voc, "count", labelling=ONE_VIEW), model(greys))
    # aeroplane: 240 + 240 of 3 x 240 pixels; bicycle: all; bird: predicted on background only.
    plane = (half + half) / (half + half + half)
    assert ignored["miou"] == pytest.approx((plane + 1) / 2)
    assert counted["miou"] == pytest.approx((plane + 1 + 0) / 3)
    assert counted["pixel_accuracy"] == ignored["pixel_accuracy"]
    del greys["bird"]
    whole = 256
    background = measure(VOC21(voc, 0.5, labelling=ONE_VIEW), model(greys))
    # Unknown greys score 0: background is right below in image 2, wrong on the right of image 1.
    assert background["miou"] == pytest.approx((plane + 1 + whole / (whole + half)) / 3)
    assert background["classes"] == 21
    assert void == whole - half
    none = measure(VOC21(voc, 2.0, labelling=ONE_VIEW), model(greys))
    assert none["pixel_accuracy"] == pytest.approx(whole / (5 * half + whole))


def test_each_class_has_its_numbers(voc: str) -> None:
    """A row for each, background the last where it is one; those of `test_backgrounds`."""
    greys = {"aeroplane": 1, "bicycle": 2}
    foreground, background = VOC20(voc, labelling=ONE_VIEW), VOC21(voc, 0.5, labelling=ONE_VIEW)
    assert foreground.per_class == []
    for suite in (foreground, background):
        found = measure(suite, model(greys))
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
    """At temperature 1 a known class among 20 has e / (e + 19), others 1 / 20."""
    share = float(np.e / (np.e + 19))
    below, above = (measure(VOC21(voc, share + d, 1.0, labelling=ONE_VIEW), model(VOC)) for d in (-1e-4, 1e-4))
    assert below["pixel_accuracy"] == measure(VOC21(voc, 0.5, labelling=ONE_VIEW), model(VOC))["pixel_accuracy"]
    assert above["pixel_accuracy"] == pytest.approx(256 / (5 * 240 + 256))


def test_candidates_of_the_image(voc: str) -> None:
    """Only classes that the image shows are given: bird cannot be mistaken for."""
    greys = {"aeroplane": 1, "bicycle": 2, "bird": 2}
    labelling = Labelling(prompts="label", upsampling="nearest", short_side=None, candidates="image")
    found = measure(VOC20(voc, labelling=labelling), model(greys))
    assert measure(VOC20(voc, labelling=ONE_VIEW), model(greys))["pixel_accuracy"] < found["pixel_accuracy"]
    # Image 1 shows 2 and 3, its truth is 2 and 1: 2 is found, 3 ties. Image 2 has one candidate, which gets all.
    assert found["pixel_accuracy"] == pytest.approx(4 / 5)
    assert found["chance_pixel_accuracy"] == pytest.approx((1 / 2 + 1 / 2 + 1 / 2 + 1 / 2 + 1) / 5)


def test_batches_and_repeats_do_not_matter(voc: str) -> None:
    """Windows encoded one by one or together; an image that a sampler repeats counts once."""
    labelling = Labelling(prompts="label", short_side=24, stride=7)
    found = measure(VOC20(voc, labelling=labelling), model(VOC))
    assert measure(VOC20(voc, labelling=labelling, batch_size=1), model(VOC)) == pytest.approx(found)
    assert measure(VOC20(voc, labelling=labelling), model(VOC), [0, 1, 2, 0, 0]) == pytest.approx(found)
    assert 0 < found["miou"] < 1


def test_worker_processes_get_no_trainer(voc: str) -> None:
    """The data set holds no suite, which holds the trainer, which cannot be sent to a process."""
    assert not any(isinstance(value, VOC20) for value in vars(VOC20(voc).read(FRAMING)).values())


def measure_rank(rank: int, root: str, shares: list[list[int]]) -> dict[str, float]:
    return measure(VOC20(root, labelling=ONE_VIEW), model(VOC), shares[rank])


def test_two_ranks_measure_what_one_does(voc: str) -> None:
    """The second rank's sampler repeats the first image."""
    expected = measure(VOC20(voc, labelling=ONE_VIEW), model(VOC))
    for found in on_ranks(measure_rank, voc, [[0, 2], [1, 0]]):
        assert found == pytest.approx(expected)


@pytest.mark.parametrize(("width", "height", "short", "stride"), [(50, 37, 20, 5), (37, 90, 16, 16), (16, 16, 16, 3)])
def test_windows_cover_the_image(width: int, height: int, short: int, stride: int) -> None:
    """Every pixel lies in a window, none outside; rows and columns are `stride` apart but for the last."""
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
    """Each pixel is the mean, over the windows that hold it, of the interpolated scores of their patches."""
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
def test_resizing_goes_by_pixel_centres(how: Any) -> None:
    """Also where one size is no multiple of the other; "nearest" alone would take a pixel's corner."""
    maps = torch.randn(1, 3, 4)
    found = resize(maps, (5, 7), how)[0]
    expected = [
        [at(maps[0], (y + 0.5) * 3 / 5 - 0.5, (x + 0.5) * 4 / 7 - 0.5, how) for x in range(7)] for y in range(5)
    ]
    torch.testing.assert_close(found, torch.tensor(expected))


def at(values: torch.Tensor, y: float, x: float, how: str) -> float:
    """One point of a map between the centres of its patches."""
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
    """Class by class in little memory, or all at once: the same labels, scores and softmax."""
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
    """Constant scores must not find the first class, in which memory whatever."""
    monkeypatch.setattr(windows_module, "_MEMORY", memory)
    canvas = Canvas(1, 4, (1, 4), [(0, 0)])
    scores = torch.tensor([[[1.0, 1, 0], [0, 2, 1], [1, 2, 2], [3, torch.nan, 1]]])
    label, _ = label_pixels(scores, (1, 4), canvas, (1, 4), "nearest")
    assert label.tolist() == [[254, 1, 254, 254]]


@pytest.mark.parametrize("expected", GOLDEN["objectives"]["segmentation"], ids=lambda expected: expected["case"])
def test_golden(expected: dict[str, Any]) -> None:
    """Patches get the class of the highest cosine."""
    case = GOLDEN["cases"][expected["case"]]
    patches, classes = (torch.tensor(case[name], dtype=torch.float64) for name in ("patches", "prototypes"))
    for image, labels in zip(patches, expected["expected"]["labels"], strict=True):
        size = (1, len(image))
        canvas = Canvas(*size, size, [(0, 0)])
        found, _ = label_pixels(cosine(image, classes)[None], size, canvas, size, "nearest")
        assert found[0].tolist() == labels


def test_maps_of_the_objective(voc: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`align` is the mean over a name's tokens and the class's prompts of what a loop over pairs gives."""
    monkeypatch.setattr(segmentation_module, "_BLOCK", 3)
    module = tiny.module(CLIP()).eval()
    (tmp_path / "templates.txt").write_text("a red {}.\nthe {} on grass")
    (tmp_path / "names.txt").write_text("apple, red cup\n" + "book\n" * 19)
    labelling = Labelling("align", str(tmp_path / "templates.txt"), str(tmp_path / "names.txt"))
    suite = VOC20(voc, labelling=labelling)
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
    """VOC's as torchvision ships them; COCO's things likewise, and those that no image shows left out."""
    from torchvision.models._meta import _COCO_CATEGORIES, _VOC_CATEGORIES

    assert [name.replace(" ", "") for (name,) in VOC20(voc).names] == _VOC_CATEGORIES[1:]
    stuff = CocoStuff(str(published.coco_stuff(tmp_path)))
    values = stuff.labels()
    things = {value: name for value, name in enumerate(_COCO_CATEGORIES[1:]) if name != "N/A"}
    assert {value: stuff.names[values[value]][0] for value in range(91) if values[value] < 200} == things
    assert [stuff.names[values[value]][0] for value in (91, 123, 155, 181)] == ["banner", "grass", "shelf", "wood"]
    assert [len(suite.names) for suite in (stuff, Context59("x"), ADE20k("x"))] == [171, 59, 150]
    assert [name for (name,) in Context59("x").names] == sorted(name for (name,) in Context59("x").names)
    assert [ADE20k("x").names[i][0] for i in (0, 12, 149)] == ["wall", "person", "flag"]


def test_one_view_stretches_the_image() -> None:
    """Whatever its shape, all of the image is seen."""
    canvas, (view,) = one_view(50, 37, FRAMING)
    assert view.source == (0, 0, 50, 37)
    assert (canvas.height, canvas.width) == canvas.window == (37, 50)
