"""Tests that unusual but valid published data gives the right metrics."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from patchword.objectives import CLIP
from patchword.suites import (
    VOC20,
    Classification,
    CocoFaithfulness,
    CocoRetrieval,
    Flickr30kEntities,
    RefCOCO,
    SugarCrepe,
    Urban1k,
    VGRelation,
)
from patchword.suites.segmentation import Labeling
from tests.suites import published_captions, published_regions
from tests.suites.color_model import model as colors
from tests.suites.published_regions import STEP, label_map, picture
from tests.suites.table_model import FRAMING, measure
from tests.suites.table_model import model as table
from tests.tiny import module

ONE_VIEW = Labeling(prompts="label", upsampling="nearest", short_side=None)
VOC = {"aeroplane": 1, "bicycle": 2, "bird": 3, "boat": 4}  # the grays of the names; others mean none
SIDEWAYS = {0x0112: 6}  # the orientation of EXIF: turn it by a quarter to see it upright
NUMBER = "1007129816"


def sideways(path: Path, size: tuple[int, int]) -> None:
    """An image whose left half is white in the stored orientation."""
    image = Image.new("RGB", size)
    image.paste((255, 255, 255), (0, 0, size[0] // 2, size[1]))
    exif = image.getexif()
    exif.update(SIDEWAYS)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=95, exif=exif)


def own(image: int, caption: str) -> float:
    """The score of a model that is always right."""
    return float(f"fish {image}," in caption and not caption.startswith("Not"))


@pytest.mark.parametrize("candidates", ["dataset", "image"])
@pytest.mark.parametrize("background", ["ignore", "count"])
def test_an_image_without_labels_changes_nothing(candidates: Any, background: Any, tmp_path: Path) -> None:
    """All pixels of one image are 255, so the metrics are those of the other images."""
    labeling = Labeling(prompts="label", upsampling="nearest", short_side=None, candidates=candidates)
    root = published_regions.voc(tmp_path)
    label_map(root / "SegmentationClass/2007_000033.png", np.full((16, 32), 255))
    found = measure(VOC20(str(root), background, labeling=labeling), colors(VOC), batch=1)
    names = root / "ImageSets/Segmentation/val.txt"
    names.write_text(names.read_text().replace("2007_000033\n", ""))
    without = measure(VOC20(str(root), background, labeling=labeling), colors(VOC), batch=1)
    assert found == without | {"images": 3.0}
    assert 0 < found["miou"] < 1


def test_nothing_to_measure_is_no_number(tmp_path: Path) -> None:
    """The result is NaN, not 0 or 1, which are valid values of the metric."""
    root = published_regions.voc(tmp_path)
    for path, values in zip(sorted((root / "SegmentationClass").iterdir()), published_regions.TRUE, strict=True):
        label_map(path, np.full_like(values, 255))
    found = measure(VOC20(str(root), labeling=ONE_VIEW), colors(VOC), batch=1)
    assert all(math.isnan(found[name]) for name in ("miou", "chance_miou", "miou_per_image", "pixel_accuracy"))


@pytest.mark.parametrize("shape", [(1, 32), (32, 1), (1, 1)])
def test_a_row_of_pixels_is_an_image(shape: tuple[int, int], tmp_path: Path) -> None:
    """The image is read as one view and in windows."""
    root = published_regions.voc(tmp_path)
    (root / "ImageSets/Segmentation/val.txt").write_bytes(b"2007_000033\r\n")
    values = np.where(np.indices(shape).sum(0) * 2 < max(shape), 1, 2)
    picture(root / "JPEGImages/2007_000033.jpg", values)
    label_map(root / "SegmentationClass/2007_000033.png", values)
    assert measure(VOC20(str(root), labeling=ONE_VIEW), colors(VOC), batch=1)["pixel_accuracy"] == 1
    windows = Labeling(prompts="label", upsampling="nearest", short_side=64)
    assert measure(VOC20(str(root), labeling=windows), colors(VOC), batch=1)["pixel_accuracy"] > 0.9


def test_labels_with_a_transparent_color(tmp_path: Path) -> None:
    """The palette and its transparency do not change the values of the pixels."""
    root = published_regions.voc(tmp_path)
    before = measure(VOC20(str(root), labeling=ONE_VIEW), colors(VOC), batch=1)
    path = root / "SegmentationClass/2007_000033.png"
    image = Image.open(path)
    image.load()
    image.save(path, transparency=1)
    assert measure(VOC20(str(root), labeling=ONE_VIEW), colors(VOC), batch=1) == before


def test_every_kind_of_image_file(tmp_path: Path) -> None:
    """Gray, palette, transparent, 16-bit, CMYK and 1-bit images are converted to RGB; a class may have no image."""
    published_regions.class_folders(tmp_path, {"two": [2], "white": []})
    (tmp_path / "white").mkdir()
    (tmp_path / "none").mkdir()
    gray = Image.new("L", (9, 7), 2 * STEP)
    palette = Image.new("P", (9, 7), 3)
    palette.putpalette([0] * 9 + [2 * STEP] * 3)
    wide = Image.fromarray(np.full((7, 9), 2 * STEP * 256, np.uint16))
    ink = Image.new("CMYK", (9, 7), (0, 0, 0, 255 - 2 * STEP))
    files = {"l.png": gray, "p.gif": palette, "la.png": gray.convert("LA"), "w.png": wide, "c.jpg": ink, "c.tif": ink}
    for name, image in files.items():
        image.save(tmp_path / "two" / name)
    Image.new("1", (1, 1), 1).save(tmp_path / "white/one.PNG")
    suite = Classification(str(tmp_path), prompts="label")
    data = suite.read(FRAMING)
    shown = [int(data[i].images.float().mean().round()) for i in range(len(data))]  # type: ignore[arg-type]
    assert sorted(shown) == [2 * STEP] * 7 + [255]
    knowing = colors({"two": 2, "white": 13, "none": 5})
    knowing.objective.score = lambda images, texts: images.pooled @ texts.pooled.T
    found = measure(suite, knowing)
    assert (found["classes"], found["chance_accuracy@1"], found["accuracy@1"]) == (3, 1 / 3, 1)
    assert found["mean_class_recall"] == 1  # of the two classes that have images


@pytest.mark.parametrize(
    ("box", "seen", "left_out"),
    [
        ((221, 31, 260, 60), None, 2),  # outside of the image
        ((60, 31, 21, 60), None, 2),  # right is left of left
        ((61, 31, 100, 90), (60, 30, 80, 60), 0),  # partly outside
        ((21, 31, 21, 31), (20, 30, 21, 31), 0),  # one pixel
        ((-9, -9, 200, 200), (0, 0, 80, 60), 0),  # round the image
    ],
)
def test_boxes_are_cut_to_the_image(box: Any, seen: Any, left_out: int, tmp_path: Path) -> None:
    """A phrase none of whose boxes has a pixel in the image is counted as unseen; chain 5 has two phrases."""
    root = published_regions.flickr30k_entities(tmp_path)
    path = root / f"Annotations/{NUMBER}.xml"
    text = path.read_text()
    for name, old, new in zip(("xmin", "ymin", "xmax", "ymax"), (21, 31, 60, 60), box, strict=True):
        assert f"<{name}>{old}</{name}>" in text
        text = text.replace(f"<{name}>{old}</{name}>", f"<{name}>{new}</{name}>")
    path.write_text(text)
    sample = Flickr30kEntities(str(root)).read(FRAMING)[0]
    assert sample.left_out == (2, left_out)
    expected = (
        [] if seen is None else [pytest.approx([x * 8 / side for x, side in zip(seen, (80, 60) * 2, strict=True)])]
    )
    boxes = [[list(box) for box in phrase.boxes] for phrases in sample.sample.phrases for phrase in phrases]
    assert boxes[1:] == [expected] * (2 if expected else 0)


def test_phrases_without_a_word(tmp_path: Path) -> None:
    """Phrases without letters have no map and are counted as cut; a blank line is not a caption."""
    untrained = module(CLIP()).eval()
    root = published_regions.flickr30k_entities(tmp_path / "flickr")
    path = root / f"Sentences/{NUMBER}.txt"
    path.write_text(path.read_text().replace("Two red cups]", " ]").replace("\n", "\n  \n", 1))
    found = measure(Flickr30kEntities(str(root)), untrained)
    assert (found["phrases"], found["cut_phrases"]) == (8, 1)
    root = published_regions.refcoco(tmp_path / "refer")
    references = root / "refcoco/refs(unc).p"
    content = pickle.loads(references.read_bytes())
    content[0]["sentences"][0]["sent"] = ""
    references.write_bytes(pickle.dumps(content, protocol=0))
    found = measure(RefCOCO(str(root)), untrained)
    assert (found["phrases"], found["cut_phrases"]) == (5, 1)
    assert all(math.isfinite(value) for value in found.values())


def test_annotated_images_are_read_as_they_are_stored(tmp_path: Path) -> None:
    """Boxes, labels and regions refer to stored pixels, as in their authors' tools; other images are rotated."""
    root = published_regions.flickr30k_entities(tmp_path / "flickr")
    sideways(root / f"flickr30k-images/{NUMBER}.jpg", (80, 60))
    stored = Flickr30kEntities(str(root)).read(FRAMING)[0].sample.image.float().mean(0)
    root = published_regions.voc(tmp_path / "voc")
    sideways(root / "JPEGImages/2007_000033.jpg", (32, 16))
    labeled = VOC20(str(root), labeling=ONE_VIEW).read(FRAMING)[0].windows[0].float().mean(0)
    root = published_captions.aro(tmp_path / "aro")
    sideways(root / "images/0.jpg", (40, 16))
    path = root / "visual_genome_relation.json"
    path.write_text(path.read_text().replace('"bbox_x": 2', '"bbox_x": 24'))
    region = VGRelation(str(root)).read(FRAMING)[0].images[0].float().mean(0)
    root = published_captions.karpathy_coco(tmp_path / "coco", 1)
    sideways(next((root / "val2014").iterdir()), (40, 16))
    upright = CocoRetrieval(str(root)).read(FRAMING)[0].images[0].float().mean(0)
    for image in (stored, labeled):
        assert image[:, :2].min() > 250
        assert image[:, -2:].max() < 5
    assert region.max() < 5  # it lies in the right half
    assert upright[:2].min() > 250
    assert upright[-2:].max() < 5


def test_an_image_that_is_there_twice_ties_with_itself(tmp_path: Path) -> None:
    """A wrong caption that ties with the right one counts as an error: only the two copies are wrong."""
    path = published_captions.karpathy_coco(tmp_path) / "dataset_coco.json"
    content = json.loads(path.read_text())
    content["images"].append(content["images"][1])
    path.write_text(json.dumps(content))
    found = measure(CocoRetrieval(str(tmp_path)), table(own))
    assert found["retrieval/images"] == 11
    assert found["retrieval/image_to_text/r@1"] == found["retrieval/text_to_image/r@1"] == pytest.approx(9 / 11)


@pytest.mark.parametrize("text", ["", "   ", "!!!"])
def test_a_caption_without_a_word(text: str, tmp_path: Path) -> None:
    """An empty caption is a candidate like every other; if it is retrieved, it has no words that count."""
    path = published_captions.karpathy_coco(tmp_path) / "dataset_coco.json"
    content = json.loads(path.read_text())
    content["images"][1]["sentences"][0]["raw"] = text
    path.write_text(json.dumps(content))
    found = measure(CocoRetrieval(str(tmp_path)), module(CLIP()).eval())
    assert found["retrieval/captions"] == 50
    assert all(math.isfinite(value) for value in found.values())
    found = measure(CocoFaithfulness(str(tmp_path)), table(lambda i, c: 2.0 if i == 0 and c == text else own(i, c)))
    assert (found["images"], found["k_precision"]) == (10, 1)


def test_a_negative_that_equals_its_caption_is_not_told_apart(tmp_path: Path) -> None:
    """The group has one of the three questions of a category."""
    path = published_captions.sugarcrepe(tmp_path) / "swap_att.json"
    content = json.loads(path.read_text())
    content["1"]["negative_caption"] = content["1"]["caption"]
    path.write_text(json.dumps(content))
    assert measure(SugarCrepe(str(tmp_path)), table(own))["swap_att/accuracy"] == pytest.approx(2 / 3)


def test_a_line_ends_where_the_authors_end_it(tmp_path: Path) -> None:
    """Unicode has line separators that do not end a line of a file."""
    path = published_captions.urban1k(tmp_path) / "caption/1.txt"
    path.write_bytes("A busy\u2028street\x0b.\r\nA second line".encode())
    assert Urban1k(str(tmp_path)).records()[0].captions == ("A busy\u2028street\x0b.",)


def test_a_region_beyond_its_image_is_black_there(tmp_path: Path) -> None:
    """Regions outside the image are cropped as in the authors' code."""
    path = published_captions.aro(tmp_path) / "visual_genome_relation.json"
    content = json.loads(path.read_text())
    content[0] |= {"bbox_x": -40, "bbox_w": 60, "bbox_y": 0, "bbox_h": 16}
    path.write_text(json.dumps(content))
    image = VGRelation(str(tmp_path)).read(FRAMING)[0].images[0]
    assert image[:, :, :5].max() == 0
    assert image[1, :, -2:].float().mean() == pytest.approx(60, abs=3)
