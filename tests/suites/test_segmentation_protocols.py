"""Tests the named protocols of segmentation: lists with several names, background names and threshold, and PAMR."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from patchword.data.pixels import Preprocessing
from patchword.errors import UserError
from patchword.metrics.segmentation import NO_CLASS
from patchword.suites import VOC20, VOC21, ADE20k, Cityscapes, CocoObject, MSRCv2
from patchword.suites import pamr as pamr_module
from patchword.suites.files import Framing
from patchword.suites.pamr import Refinement
from patchword.suites.segmentation import Labeling, Segmentation
from patchword.suites.windows import resize, stitch
from tests.suites import published_regions as published
from tests.suites.color_model import model

FRAMING = Framing(Preprocessing("stretch", interpolation="nearest"), 16)
MANY = Labeling(prompts="label", short_side=None, several_names="max")
OBJECTS = ["aeroplane, jet", "bicycle", *(f"thing {n}" for n in range(18))]
BACKGROUND = ["sky, wall, bicycle lane", *OBJECTS]


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(published.voc(tmp_path_factory.mktemp("voc")))


def listed(folder: Path, lines: list[str]) -> str:
    """Write a list of names as the training-free papers publish it: without a line break at its end."""
    path = folder / "cls_voc.txt"
    path.write_text("\n".join(lines))
    return str(path)


def predicted(suite: Segmentation, module: Any, index: int) -> Tensor:
    """The predicted classes of an image."""
    return suite.evaluation(module).predict(suite.collate([suite.read(FRAMING)[index]]))


def test_the_highest_name_of_a_class_counts(voc: str, tmp_path: Path) -> None:
    """Image 2 shows gray 1 above gray 4. `max` finds the class by one of its names; background has names, too."""
    grays = {"jet": 1, "bicycle": 2, "wall": 4}
    labeling = replace(MANY, class_names=listed(tmp_path, BACKGROUND), upsampling="nearest")
    found = predicted(VOC21(voc, 0.5, labeling=labeling), model(grays), 2)
    assert (found[:16] == 0).all()
    assert (found[16:] == 20).all()
    unknown = predicted(VOC21(voc, 0.5, labeling=labeling), model({"jet": 1}), 2)  # below the threshold, without a name
    assert (unknown[16:] == 20).all()
    mean = replace(labeling, several_names="mean")
    high = predicted(VOC21(voc, 0.8, labeling=mean), model(grays), 2)  # a mean of two names has a cosine of 0.71
    assert (high[:16] == 20).all()


@pytest.mark.parametrize("temperature", [1 / 40, None])
def test_labels_equal_the_rule_of_the_papers(
    voc: str, tmp_path: Path, temperature: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Softmax over all names, the highest name of a class, the best class, and background below the threshold."""
    labeling = replace(MANY, class_names=listed(tmp_path, BACKGROUND), short_side=24, stride=7)
    threshold = 0.1 if temperature is None else 0.3
    suite = VOC21(voc, threshold, temperature, labeling=labeling)
    evaluation = suite.evaluation(model({}))
    batch = suite.collate([suite.read(FRAMING)[0]])
    generator = torch.Generator().manual_seed(0)
    names = [name for line in BACKGROUND for name in line.split(", ")]
    scores = 0.1 * torch.randn(len(batch.windows), 16, len(names), generator=generator)
    parts = iter(scores.split(suite.batch_size))
    monkeypatch.setattr(evaluation, "patch_scores", lambda images: next(parts))
    found = evaluation.predict(batch)

    pixels = resize(stitch(scores, (4, 4), batch.canvas, "bilinear"), tuple(batch.truth.shape), "bilinear")
    values = pixels if temperature is None else (40 * pixels).softmax(0)
    owner = [number for number, line in enumerate(BACKGROUND) for _ in line.split(", ")]
    for y in range(0, found.shape[0], 3):
        for x in range(0, found.shape[1], 3):
            best = [max(float(v) for v, o in zip(values[:, y, x], owner, strict=True) if o == c) for c in range(21)]
            line = 0 if max(best) < threshold else int(np.argmax(best))
            assert int(found[y, x]) == (20 if line == 0 else line - 1)
    assert len(found.unique()) > 3


def test_a_name_of_two_classes_stays_with_the_first(voc: str, tmp_path: Path) -> None:
    """The lists for COCO-Object have "bed" in the background and as an object: it would tie with itself everywhere."""
    lines = ["sky, wall, bicycle", *OBJECTS]
    suite = VOC21(voc, 0.5, labeling=replace(MANY, class_names=listed(tmp_path, lines), upsampling="nearest"))
    with pytest.warns(UserWarning, match=r"names in .*cls_voc\.txt that belong to two classes: 'bicycle'"):
        found = predicted(suite, model({"bicycle": 2, "jet": 1}), 0)
    assert found[:, 0].unique().tolist() == [0]
    assert found[:, -1].unique().tolist() == [20]


def test_classes_of_the_image_and_background_are_candidates(voc: str, tmp_path: Path) -> None:
    """With `candidates: image`, names of absent classes are left out; the background remains."""
    labeling = replace(MANY, class_names=listed(tmp_path, BACKGROUND), candidates="image", upsampling="nearest")
    suite = VOC21(voc, 0.0, labeling=labeling)
    found = predicted(suite, model({"thing 0": 1, "wall": 2}), 0)  # thing 0 is not in image 0, aeroplane ties
    assert found[:, -1].unique().tolist() == [20]
    assert found[:, 0].unique().tolist() == [NO_CLASS]


def test_lists_are_refused_with_the_reason(voc: str, tmp_path: Path) -> None:
    """A list with background needs a suite with background, several names need a meaning, and 253 names are enough."""
    names = listed(tmp_path, BACKGROUND)
    with pytest.raises(UserError, match=r"one line more than the 20 classes, for the background"):
        VOC20(voc, labeling=replace(MANY, class_names=names)).read(FRAMING)
    with pytest.raises(UserError, match=r"cls_voc\.txt, line 1 has 3 names: set data\.labeling\.several_names to max"):
        VOC21(voc, 0.1, labeling=replace(MANY, class_names=names, several_names=None))
    many = listed(tmp_path, [", ".join(f"name {n}" for n in range(240)), *OBJECTS])
    with pytest.raises(UserError, match=r"has 261 names, more than 253"):
        VOC21(voc, 0.1, labeling=replace(MANY, class_names=many)).read(FRAMING)
    with pytest.raises(UserError, match=r"20 classes, .*but it has 22"):
        VOC21(voc, 0.1, labeling=replace(MANY, class_names=listed(tmp_path, ["one", "two", *OBJECTS])))
    with pytest.raises(UserError, match=r"data\.labeling\.pamr must be 1 or more"):
        Labeling(pamr=0)


@pytest.mark.parametrize("row", ["{}\t0.1\t11664\t1172\t{}", "{}: {}"])
def test_a_table_is_not_a_list_of_names(voc: str, tmp_path: Path, row: str) -> None:
    """ADE20K publishes `objectInfo150.txt` and COCO-Stuff `labels.txt`: columns would become parts of the names."""
    rows = [row.format(number, name) for number, name in enumerate(f"thing {n}" for n in range(20))]
    with pytest.raises(UserError, match=r"cls_voc\.txt, line 1 has more than names: '0"):
        VOC20(voc, labeling=replace(MANY, class_names=listed(tmp_path, rows)))


FREE = Labeling(several_names="max", short_side=336, stride=112, protocol="training_free")
SPARC = Labeling(prompts="label", upsampling="nearest", short_side=None, protocol="sparc")
LIES: dict[str, tuple[Callable[[str, str], Segmentation], str]] = {
    "prompts": (lambda root, f: ADE20k(root, replace(FREE, prompts="label")), "labeling.prompts clip, not label"),
    "names": (lambda root, f: ADE20k(root, replace(FREE, several_names="mean")), "several_names max, not mean"),
    "side": (lambda root, f: ADE20k(root, replace(FREE, short_side=448)), "short_side 336, not 448"),
    "side of Cityscapes": (lambda root, f: Cityscapes(root, FREE), "short_side 560, not 336"),
    "whole image": (lambda root, f: VOC20(root, labeling=FREE), "short_side null, not 336"),
    "stride": (lambda root, f: ADE20k(root, replace(FREE, stride=56)), "stride 112, not 56"),
    "list": (lambda root, f: ADE20k(root, FREE), "set data.labeling.class_names"),
    "threshold": (
        lambda root, f: VOC21(root, 0.2, 0.025, labeling=replace(FREE, short_side=None, class_names=f)),
        "data.threshold 0.1, not 0.2",
    ),
    "scale": (
        lambda root, f: VOC21(root, 0.1, 0.01, labeling=replace(FREE, short_side=None, class_names=f)),
        "data.temperature 0.025, not 0.01",
    ),
    "background": (
        lambda root, f: VOC20(root, "count", labeling=replace(FREE, short_side=None)),
        "data.background ignore, not count",
    ),
    "background names": (
        lambda root, f: VOC21(root, 0.1, 0.025, labeling=replace(FREE, short_side=None, class_names=f)),
        "no names of the background",
    ),
    "masks": (lambda root, f: CocoObject(root, threshold=0.1, labeling=FREE), "data.masks stuffthingmaps"),
    "sparc": (
        lambda root, f: VOC20(root, "count", labeling=replace(SPARC, short_side=448)),
        "short_side null, not 448",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_a_name_of_a_protocol_cannot_lie(name: str, voc: str, tmp_path: Path) -> None:
    """Every option that the protocol fixes is checked, in one line that names it."""
    build, words = LIES[name]
    with pytest.raises(UserError) as raised:
        build(voc, listed(tmp_path, OBJECTS)).read(Framing(FRAMING.preprocessing, 224))
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_window_of_the_protocol_is_224_pixels(tmp_path: Path) -> None:
    """Windows have the size of the encoder's input."""
    with pytest.raises(UserError, match=r"training_free has data\.image_size 224, not 336"):
        ADE20k(str(tmp_path), FREE).read(Framing(FRAMING.preprocessing, 336))


def test_keys_name_the_protocol_and_former_protocols_stay_as_they_are_recorded(voc: str, tmp_path: Path) -> None:
    """A result of one protocol cannot be taken for another's; options that nobody sets are not recorded."""
    names = listed(tmp_path, BACKGROUND)
    free = VOC21(voc, 0.1, 0.025, labeling=replace(FREE, short_side=None, class_names=names))
    free.read(FRAMING)
    assert free.key == "voc21_val_training_free"
    assert free.protocol()["labeling"]["several_names"] == "max"
    assert VOC20(voc, "count", labeling=SPARC).key == "voc20_val_sparc"
    assert VOC20(voc).key == "voc20_val_own"
    assert MSRCv2(voc, "Test.txt").key == "msrc_v2_test"
    assert {*VOC20(voc).protocol()["labeling"]} == {
        *("map", "prompts", "class_names", "candidates", "upsampling", "short_side", "stride")
    }
    assert "masks" not in CocoObject(voc).protocol()
    assert CocoObject(voc, masks="stuffthingmaps").protocol()["masks"] == "stuffthingmaps"


def test_label_maps_of_coco_object_and_cityscapes(tmp_path: Path) -> None:
    """COCO-Stuff's things are the objects and everything else is background; ids of Cityscapes become classes."""
    root = str(published.coco_stuff(tmp_path / "stuff"))
    suite = CocoObject(root, masks="stuffthingmaps", threshold=0.5)
    assert [image.name for image, _ in suite.files()] == ["000000000139.jpg", "000000000285.jpg", "000000000632.jpg"]
    assert suite.labels()[[0, 1, 12, 89, 91, 181, 255]].tolist() == [0, 1, 11, 79, 80, 80, 80]
    assert CocoObject(root, masks="stuffthingmaps").labels()[[0, 181, 255]].tolist() == [0, 255, 255]
    np.testing.assert_array_equal(
        suite.labels()[suite.label_map(suite.files()[0][1])], np.where(published.TRUE[0] == 1, 0, 80)
    )
    cities = Cityscapes(str(published.cityscapes(tmp_path / "cities")))
    assert cities.labels()[[0, 7, 8, 33]].tolist() == [255, 0, 1, 18]
    image, labels = cities.files()[1]
    assert (image.parent.name, image.name) == ("lindau", "lindau_000000_000001_leftImg8bit.png")
    assert labels.name == "lindau_000000_000001_gtFine_labelIds.png"
    assert image.is_file()
    with pytest.raises(UserError, match=r"gtFine_trainvaltest\.zip"):
        Cityscapes(root).files()


def test_pamr_equals_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pixel takes the mean of its neighbors, weighted by the similarity of colors, as many times as asked."""
    monkeypatch.setattr(pamr_module, "DISTANCES", (1, 2))
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (3, 5, 4), dtype=torch.uint8, generator=generator)
    maps = torch.randn(2, 5, 4, generator=generator)
    found = Refinement(image, 2)(maps)
    x = image.double().numpy() / 255

    def near(y: int, z: int, center: bool) -> list[tuple[int, int]]:
        steps = [(d * a, d * b) for d in (1, 2) for a in (-1, 0, 1) for b in (-1, 0, 1) if center or (a, b) != (0, 0)]
        return [(min(max(y + a, 0), 4), min(max(z + b, 0), 3)) for a, b in steps]

    values = maps.double().numpy()
    for _ in range(2):
        after = np.empty_like(values)
        for y in range(5):
            for z in range(4):
                sigma = np.std([x[:, a, b] for a, b in near(y, z, True)], axis=0, ddof=1)
                own = near(y, z, False)
                k = np.array([np.mean(-np.abs(x[:, y, z] - x[:, a, b]) / (0.1 * sigma + 1e-8)) for a, b in own])
                weights = np.exp(k - k.max()) / np.exp(k - k.max()).sum()
                after[:, y, z] = sum(w * values[:, a, b] for w, (a, b) in zip(weights, own, strict=True))
        values = after
    np.testing.assert_allclose(found.numpy(), values, rtol=1e-4, atol=1e-5)


def test_pamr_follows_edges_and_survives_constant_images(voc: str, tmp_path: Path) -> None:
    """A blurred map returns to the edge of the colors; a constant image has no edge and gives finite scores."""
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    image[:, :, 30:] = 200
    soft = torch.linspace(-1, 1, 60).expand(1, 40, 60)
    refined = Refinement(image, 10)(soft)
    assert (refined[0, 20, 29] - refined[0, 20, 30]).abs() > 3 * (soft[0, 20, 29] - soft[0, 20, 30]).abs()
    flat = Refinement(torch.full((3, 20, 20), 7, dtype=torch.uint8), 3)
    assert torch.equal(flat(torch.ones(1, 20, 20)).round(decimals=5), torch.ones(1, 20, 20))
    labeling = replace(MANY, class_names=listed(tmp_path, OBJECTS), pamr=2)
    suite = VOC20(voc, labeling=labeling)
    assert predicted(suite, model({"jet": 1, "bicycle": 2}), 0).unique().tolist() == [0, 1]
    assert suite.protocol()["labeling"]["pamr"] == 2
