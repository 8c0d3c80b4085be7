"""Phrases with boxes, hard negatives and images of many kinds in rows of users' own data."""

from pathlib import Path
from random import Random

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from patchword.data.batch import collate
from patchword.data.pixels import Preprocessing
from patchword.data.skipping import BrokenSample
from patchword.data.tables.image_text import ImageText
from patchword.data.tables.regions import read_regions
from patchword.data.tables.rows import Columns, RowReader
from patchword.errors import UserError
from patchword.metrics.grounding import Grounding
from patchword.metrics.map_scores import map_scores
from patchword.metrics.targets import Targets
from tests.data import formats


@pytest.fixture
def reader(tmp_path):
    """Make a reader of a folder with one wide image, whose left half is red and right half is blue."""
    pixels = np.zeros((40, 80, 3), dtype=np.uint8)
    pixels[:, :40, 0] = pixels[:, 40:, 2] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    columns = Columns("image", ["caption"], "phrases", "negatives")
    return RowReader(columns, tmp_path, Preprocessing(), 20, phrases="data")


def row(**fields):
    return {"image": "a.png", "caption": "a red half", **fields}


def region(**fields):
    return {"start": 0, "end": 10, "box": [20, 0, 40, 40], **fields}


def test_sample(reader):
    """The crop keeps the middle, and boxes and masks follow it; training has no masks and keeps all phrases."""
    phrases = [region(), region(start=2, end=5, box=[30, 10, 50, 20]), region(box=[0, 0, 10, 10])]
    line = row(phrases=phrases, negatives=["a green half", "", " a cat "])
    sample = reader.evaluate([line], 0, "row 0")
    assert sample.image.shape == (3, 20, 20)
    assert (sample.image[0, :, :9] > 250).all()
    assert (sample.image[2, :, 11:] > 250).all()
    assert sample.negatives == ["a green half", "a cat"]
    assert [p.box for p in sample.phrases[0]] == [(0, 0, 10, 20), (5, 5, 15, 10)]
    assert [int(p.mask.sum()) for p in sample.phrases[0]] == [200, 50]
    assert sample.phrases[0][1].mask[5:10, 5:15].all()
    assert (sample.phrases[0][1].start, sample.phrases[0][1].end) == (2, 5)
    trained = reader.train(line, 0, "row 0", Random(0))
    assert trained.negatives == sample.negatives
    assert trained.negative_caption == [0, 0]
    assert [(p.box, p.mask) for p in trained.phrases[0]] == [
        ((0, 0, 10, 20), None),
        ((5, 5, 15, 10), None),
        (None, None),
    ]


def test_several_boxes_and_a_type(reader):
    """The mask is the union of the boxes, the box the smallest around them; boxes outside the crop are dropped."""
    boxes = [[20, 0, 24, 4], [52, 36, 60, 40], [0, 0, 10, 10]]
    phrases = [region(box=None, boxes=boxes, type="people"), region(boxes=boxes[1:2], box=boxes[0]), region(boxes=None)]
    batch = collate([reader.evaluate([row(phrases=phrases)], 0, "row 0")])
    assert batch.phrase_type == ["people", None, None]
    assert batch.phrase_box.tolist() == [[0, 0, 20, 20], [0, 0, 20, 20], [0, 0, 10, 20]]
    assert batch.box_phrase.tolist() == [0, 0, 1, 1, 2]
    assert batch.boxes.tolist() == [[0, 0, 2, 2], [16, 18, 20, 20]] * 2 + [[0, 0, 10, 20]]
    assert batch.phrase_mask.sum((1, 2)).tolist() == [4 + 8, 4 + 8, 200]


def test_pointing_between_two_boxes_is_no_hit(reader):
    """Pointing into any box is a hit, pointing between them is not; each type has its own metrics."""
    boxes = [[20, 0, 24, 4], [52, 36, 60, 40]]
    phrases = [region(box=None, boxes=boxes, type=kind) for kind in ("people", "people", "scene/place", None)]
    batch = collate([reader.evaluate([row(phrases=phrases)], 0, "row 0")])
    maps = torch.zeros(4, 100)
    maps[[0, 1, 2, 3], [0, 45, 99, 99]] = 1  # first box, the gap, second box
    metric = Grounding()
    targets = Targets.of_batch(batch, torch.ones(4, dtype=torch.bool))
    metric.update(map_scores(maps, (10, 10), targets), targets)
    found = metric.compute()
    assert (found["pointing_game"], found["pointing_game_box"]) == (0.75, 0.75)
    assert (found["pointing_game_people"], found["phrases_people"]) == (0.5, 2)
    assert (found["pointing_game_scene_place"], found["phrases_scene_place"]) == (1, 1)
    assert found["phrases_small"] == 4
    parts = {"people", "scene_place", "small"}
    assert {name for name in found if name.startswith("phrases_")} == {f"phrases_{part}" for part in parts}


def test_rows_of_one_image_are_one_sample(reader):
    """The sample has all captions with their phrases; an empty caption is left out."""
    rows = [row(phrases=[region()]), row(caption=""), row(caption="a blue half", phrases=[region(caption=0, end=6)])]
    sample = reader.evaluate(rows, 3, "row 0")
    assert sample.captions == ["a red half", "a blue half"]
    assert [[(p.start, p.end) for p in of] for of in sample.phrases] == [[(0, 10)], [(0, 6)]]


def test_phrases_name_their_caption(reader):
    line = row(caption=["a red half", "a blue half"], phrases=[region(caption=1)])
    assert [len(of) for of in reader.evaluate([line], 0, "row 0").phrases] == [0, 1]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1"])
def test_color_modes(reader, mode):
    """Images of all color modes become RGB."""
    name = "b.jpg" if mode == "CMYK" else "b.png"
    Image.open(reader.root / "a.png").convert(mode).save(reader.root / name)
    assert reader.evaluate([row(image=name)], 0, "row 0").image.shape == (3, 20, 20)


def test_transparent_is_white(reader):
    Image.new("RGBA", (30, 30), (0, 0, 0, 0)).save(reader.root / "b.png")
    assert (reader.evaluate([row(image="b.png")], 0, "row 0").image == 255).all()


def test_sixteen_bits_are_scaled(reader):
    Image.fromarray(np.full((30, 30), 128 << 8, dtype=np.uint16)).save(reader.root / "b.png")
    assert (reader.evaluate([row(image="b.png")], 0, "row 0").image == 128).all()


def test_orientation_is_respected(reader):
    """Boxes are in pixels of the upright image."""
    image = Image.open(reader.root / "a.png")
    exif = image.getexif()
    exif[0x0112] = 6  # shown turned by a quarter: what was left is on top
    image.save(reader.root / "b.jpg", exif=exif, quality=95)
    sample = reader.evaluate([row(image="b.jpg", phrases=[region(box=[0, 20, 40, 40])])], 0, "row 0")
    assert sample.image[0, :9].min() > 200
    assert sample.phrases[0][0].box == (0, 0, 20, 10)


@pytest.mark.parametrize(
    ("phrases", "message"),
    [
        ({}, "phrases must be a list"),
        ([{"start": 0}], "phrase 0 must be an object with start, end"),
        ([region(), region(end=11)], "phrase 1: start 0 and end 11 are not inside its caption of 10 characters"),
        ([region(start=5, end=5)], "are not inside"),
        ([region(start=True)], "are not inside"),
        ([region(caption=1)], "caption must be an index from 0 to 0, not 1"),
        ([region(box=[1, 2, 3])], "box must be four numbers"),
        ([region(box=[1, 2, float("nan"), 3])], "box must be four numbers"),
        ([region(box=[3, 0, 1, 5])], "left < right and top < bottom"),
        ([region(boxes=[[3, 0, 1, 5]])], "left < right and top < bottom"),
        ([region(boxes=3)], "boxes must be a list of boxes"),
        ([region(type=3)], "type must be a text, not 3"),
    ],
)
def test_wrong_phrases(reader, phrases, message):
    """The message names the phrase; in a row it is a reason to skip the sample."""
    with pytest.raises(UserError, match=message):
        read_regions(phrases, ["a red half"])
    if phrases:
        with pytest.raises(BrokenSample, match=message):
            reader.evaluate([row(phrases=phrases)], 0, "row 0")


def test_a_path_out_of_the_folder_is_an_error_at_once(reader, tmp_path: Path):
    with pytest.raises(UserError, match=r"row 0: the image '\.\./a\.png' leads out of the folder") as raised:
        reader.evaluate([row(image="../a.png")], 0, "row 0")
    assert not isinstance(raised.value, BrokenSample)


def test_broken_images_of_a_folder_are_skipped(tmp_path: Path):
    """Missing, truncated and wrong files, empty captions, and phrases outside of captions are listed with reasons."""
    spans = {4: [], 5: [{"start": 0, "end": 99}]}
    folder = formats.imagefolder(tmp_path / "train", phrases=lambda n: spans.get(n, [{"start": 0, "end": 7}]))
    (folder / "1.jpg").unlink()
    (folder / "2.jpg").write_bytes(formats.jpeg(2)[:200])
    (folder / "3.jpg").write_text("no image")
    lines = (folder / "metadata.jsonl").read_text().replace('"caption 4"', '""')
    (folder / "metadata.jsonl").write_text(lines)
    module = ImageText("imagefolder", str(folder), phrases="data", resize_mode="crop", image_size=16, batch_size=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        module.setup("fit")
        (batch,) = module.train_dataloader()
    assert {*batch.captions} == {"caption 0", "caption 6", "caption 7"}
    reasons = {one.key.rpartition("/")[2].rstrip(")"): one.reason for one in batch.skipped}
    expected = {
        "1.jpg": "there is no image",
        "2.jpg": "cannot be read",
        "3.jpg": "supported formats",
        "4.jpg": "its caption is",
    }
    for name, reason in (expected | {"5.jpg": "phrase 0: start 0 and end 99 are not"}).items():
        assert reason in reasons[name]
