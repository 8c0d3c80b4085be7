"""Guards that COCO is read as its archives unpack: captions, names of categories as phrases, and instance masks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from benchmarks import natural_layout
from PIL import Image
from pycocotools import mask as coco_masks

from patchword.data.pixels import View
from patchword.data.polygons import filled
from patchword.data.published import instances
from patchword.data.tables.image_text import ImageText
from patchword.data.tables.regions import read_regions
from patchword.errors import UserError

NAMES = {1: "person", 18: "dog", 23: "bear", 49: "knife", 58: "hot dog", 88: "teddy bear"}
SIZE = (64, 48)
CAPTIONS = ["A dog , a Hot Dog and a teddy bear .", "Two dogs and a bear near people with knives ."]
OBJECTS = [
    {"id": 18, "box": [2.0, 4.0, 30.0, 40.0], "polygons": [[2.0, 4.0, 30.0, 4.0, 30.0, 40.0]], "crowd": 0},
    {
        "id": 18,
        "box": [40.5, 10.0, 60.0, 20.0],
        "polygons": [[40.5, 10.0, 60.0, 10.0, 60.0, 20.0, 50.0, 20.0]],
        "crowd": 0,
    },
    {"id": 88, "box": [10.0, 30.0, 20.0, 48.0], "polygons": [[10.0, 30.0, 20.0, 30.0, 15.0, 48.0]], "crowd": 0},
    {"id": 49, "box": [0.0, 0.0, 9.0, 9.0], "polygons": [[0.0, 0.0, 9.0, 0.0, 9.0, 9.0]], "crowd": 0},
    {"id": 1, "box": [32.0, 0.0, 64.0, 8.0], "crowd": 1},
]


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        datasets.disable_progress_bars()
        yield


def scaled_copy(root: Path) -> None:
    """Write three random pictures in the form that `natural_layout` reads; only the first one has objects."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    crowd = np.zeros(SIZE[::-1], dtype=np.uint8)
    crowd[2:6, 40:63] = 255
    crowd[30:, 40:] = 255  # of another crowd
    lines = []
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8)
        name = f"{139 + number:012}"
        Image.fromarray(pixels).save(root / f"images/{name}.jpg")
        Image.fromarray(crowd).save(root / f"masks/{name}.png")
        record = {"file": f"{name}.jpg", "mask": f"{name}.png", "size": SIZE, "captions": CAPTIONS[: 2 - number // 2]}
        record |= {"licence": "Attribution License", "flickr_url": "", "objects": [] if number else OBJECTS}
        lines.append(json.dumps(record))
    (root / "captions.jsonl").write_text("\n".join(lines))
    (root / "classes.json").write_text(json.dumps(NAMES))


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The scaled copy, and the same in the published layout."""
    copy, root = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("coco")
    scaled_copy(copy)
    natural_layout.coco_mini(copy, root)
    return copy, root


def data(source: str, root: Path, test: str, **options: Any) -> ImageText:
    defaults = {"phrases": "data", "resize_mode": "stretch", "image_size": 32}
    return ImageText(source, root=str(root), train=test, test=test, **defaults | options)


def test_coco_laid_out_gives_the_samples_of_its_copy(roots: tuple[Path, Path], tmp_path: Path) -> None:
    """Pixels, captions, spans, types, boxes and masks are those of the same content in the format `json`."""
    copy, root = roots
    dogs, bear, knife = OBJECTS[:2], OBJECTS[2:3], OBJECTS[3:4]
    named = [(0, "dog", "animal", dogs), (0, "teddy bear", "indoor", bear)]
    named += [(1, "dogs", "animal", dogs), (1, "knives", "kitchen", knife)]
    phrases = [
        {"caption": n, "start": CAPTIONS[n].index(words), "end": CAPTIONS[n].index(words) + len(words), "type": kind}
        | {"boxes": [one["box"] for one in own], "polygons": [one["polygons"][0] for one in own]}
        for n, words, kind, own in named
    ]
    rows = [
        {"image": f"{139 + n:012}.jpg", "caption": CAPTIONS[: 2 - n // 2], "phrases": [] if n else phrases}
        for n in range(3)
    ]
    (tmp_path / "direct.json").write_text(json.dumps(rows))
    found = data("coco", root, "val2017").split("test")
    wanted = data("json", copy / "images", str(tmp_path / "direct.json")).split("test")
    assert len(found) == len(wanted) == 3
    for one, other in ((found[i], wanted[i]) for i in range(3)):
        assert torch.equal(one.image, other.image)
        assert one.captions == other.captions
        for got, own in zip(one.phrases, other.phrases, strict=True):
            assert [(p.start, p.end, p.type) for p in got] == [(p.start, p.end, p.type) for p in own]
            boxes = [[box for p in phrases for box in p.boxes] for phrases in (got, own)]
            np.testing.assert_allclose(*boxes, atol=1e-9)
            assert all(torch.equal(p.mask, q.mask) for p, q in zip(got, own, strict=True))
    assert [len(phrases) for phrases in found[0].phrases] == [2, 2], "person has a crowd, bear and hot dog no instance"


def test_masks_follow_the_pixels(roots: tuple[Path, Path]) -> None:
    """The mask of a phrase is the union of its instances' outlines in the square that the sample shows."""
    _, root = roots
    phrase = data("coco", root, "val2017", resize_mode="crop", image_size=48).split("test")[0].phrases[0][0]
    outlines = [one["polygons"][0] for one in OBJECTS[:2]]
    expected = filled(outlines, *SIZE)[:, 8:56]  # the crop keeps the middle
    assert phrase.mask is not None
    assert torch.equal(phrase.mask, torch.from_numpy(expected))
    assert 0.4 < phrase.mask[:, :22].sum() / (28 * 36 / 2) < 1


OLD_NUMPY = "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"  # pycocotools


@pytest.mark.filterwarnings(OLD_NUMPY)
@pytest.mark.parametrize("seed", range(5))
def test_filled_polygons_equal_those_of_pycocotools(seed: int) -> None:
    """Only pixels at the outline differ, and the areas are equal: neither is larger than the other."""
    random = np.random.default_rng(seed)
    angles = np.sort(random.uniform(0, 2 * np.pi, 9))
    radius = random.uniform(15, 60, 9)
    corners = np.stack([70 + radius * np.cos(angles), 50 + radius * np.sin(angles)], -1).flatten().tolist()
    found = filled([corners], 120, 90)
    wanted = coco_masks.decode(coco_masks.frPyObjects([corners], 90, 120))[..., 0].astype(bool)
    inner = wanted[1:-1, 1:-1] & wanted[:-2, 1:-1] & wanted[2:, 1:-1] & wanted[1:-1, :-2] & wanted[1:-1, 2:]
    assert found[1:-1, 1:-1][inner].all()
    assert (found & wanted).sum() / (found | wanted).sum() > 0.97
    assert found.sum() == pytest.approx(wanted.sum(), rel=0.02)


@pytest.mark.filterwarnings(OLD_NUMPY)
def test_runs_of_a_crowd_equal_those_of_pycocotools(roots: tuple[Path, Path]) -> None:
    """The script writes runs as published: pycocotools and the reader see the pixels of the copy's mask in the box."""
    copy, root = roots
    path = root / "annotations/instances_val2017.json"
    published = json.loads(path.read_text())["annotations"][4]
    with Image.open(copy / "masks/000000000139.png") as mask:
        expected = np.asarray(mask) == 255
    expected[8:] = False
    outline = published["segmentation"]
    wanted = coco_masks.decode(coco_masks.frPyObjects(outline, *outline["size"])).astype(bool)
    np.testing.assert_array_equal(wanted, expected)
    crowd = instances.read(path).of_image[139][4]
    np.testing.assert_array_equal(crowd.crowd_pixels(*SIZE, "here"), expected)
    assert published["area"] == expected.sum()


def test_areas_are_those_of_the_polygons(roots: tuple[Path, Path]) -> None:
    """The areas, by which overlapping instances are ordered, are the areas inside the outlines."""
    _, root = roots
    areas = [one.area for one in instances.read(root / "annotations/instances_val2017.json").of_image[139]]
    assert areas[:4] == [28 * 36 / 2, (19.5 + 10) / 2 * 10, 10 * 18 / 2, 9 * 9 / 2]


def test_captions_alone_are_enough(tmp_path: Path) -> None:
    """Without instances there are no phrases."""
    scaled_copy(tmp_path / "copy")
    (tmp_path / "coco").mkdir()
    natural_layout.coco_mini(tmp_path / "copy", tmp_path / "coco")
    (tmp_path / "coco/annotations/instances_val2017.json").unlink()
    sample = data("coco", tmp_path / "coco", "val2017", phrases="none").split("test")[1]
    assert sample.captions == CAPTIONS
    with pytest.raises(UserError, match="no column 'phrases'"):
        data("coco", tmp_path / "coco", "val2017").split("test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: one.pop("bbox"), r"annotations\[0\] has no 'bbox'"),
        (lambda one: one.update(category_id=2), r"annotations\[0\]: 2 is not the id of a category"),
        (lambda one: one.update(segmentation=[[1, 2, 3]]), r"annotations\[0\]: segmentation must be an even number"),
    ],
    ids=["no box", "no category", "odd polygon"],
)
def test_malformed_instances_are_named(roots: tuple[Path, Path], tmp_path: Path, change: Any, message: str) -> None:
    """An error names the file and the annotation."""
    content = json.loads((roots[1] / "annotations/instances_val2017.json").read_text())
    change(content["annotations"][0])
    (tmp_path / "instances.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        instances.read(tmp_path / "instances.json")


def test_polygons_of_users() -> None:
    """Polygons are checked and need a box; a view moves and scales them."""
    phrase = {"start": 0, "end": 1, "box": [10, 0, 20, 40], "polygons": [[10, 0, 20, 0, 20, 40, 10, 40]]}
    (region,) = read_regions([phrase], ["a"])
    seen = region.scaled(2.0, 0.5).phrase(View((20.0, 0.0, 60.0, 20.0), 20))  # from 20 x 20 of 40 x 20 pixels
    assert seen is not None
    assert seen.mask is not None
    assert seen.mask[:, :10].all()
    assert not seen.mask[:, 10:].any()
    for wrong in ([[1, 2, 3, 4]], [[0, 0, 1, 1, 2]], ["abcdef"], 5):
        with pytest.raises(UserError, match="polygon"):
            read_regions([phrase | {"polygons": wrong}], ["a"])
    with pytest.raises(UserError, match="next to the boxes"):
        read_regions([{"start": 0, "end": 1, "polygons": phrase["polygons"]}], ["a"])
