"""Folders of the user's own images: geometry, formats, and one clear message for each mistake."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from patchword.data.batch import collate
from patchword.data.folder import CaptionFolder, CaptionImages
from patchword.data.pixels import Preprocessing, View


@pytest.fixture
def folder(tmp_path):
    """A folder with one wide image, left half red, right half blue."""
    pixels = np.zeros((40, 80, 3), dtype=np.uint8)
    pixels[:, :40, 0] = pixels[:, 40:, 2] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path


def metadata(folder, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def row(**fields):
    return {"file_name": "a.png", "caption": "a red half", **fields}


def region(**fields):
    return {"start": 0, "end": 10, "box": [20, 0, 40, 40], **fields}


def test_sample(folder):
    """The crop keeps the middle; boxes and masks follow it."""
    phrases = [region(), region(start=2, end=5, box=[30, 10, 50, 20]), region(box=[0, 0, 10, 10])]
    sample = CaptionImages(metadata(folder, row(phrases=phrases, negatives=["a green half"])), 20)[0]
    assert sample.image.shape == (3, 20, 20)
    assert (sample.image[0, :, :9] > 250).all()
    assert (sample.image[2, :, 11:] > 250).all()
    assert sample.negatives == ["a green half"]
    assert [p.box for p in sample.phrases[0]] == [(0, 0, 10, 20), (5, 5, 15, 10)]
    assert [int(p.mask.sum()) for p in sample.phrases[0]] == [200, 50]
    assert sample.phrases[0][1].mask[5:10, 5:15].all()
    assert (sample.phrases[0][1].start, sample.phrases[0][1].end) == (2, 5)


def test_several_captions(folder):
    """Evaluation sees an image once with all captions, training every caption once, under the image's id."""
    line = row(captions=["a red half", "a blue half"], phrases=[region(caption=1)], negatives=["a green half"])
    del line["caption"]
    metadata(folder, row(), line)
    whole = CaptionImages(folder, 20)
    assert [len(phrases) for phrases in whole[1].phrases] == [0, 1]
    pairs = CaptionImages(folder, 20, pairs=True)
    assert [(s.id, s.captions, len(s.phrases[0]), len(s.negatives)) for s in map(pairs.__getitem__, range(3))] == [
        (0, ["a red half"], 0, 0),
        (1, ["a red half"], 0, 1),
        (1, ["a blue half"], 1, 0),
    ]
    batch = collate([pairs[i] for i in range(3)])
    assert batch.caption_image.tolist() == [0, 1, 2]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1"])
def test_colour_modes(folder, mode):
    """Whatever Pillow reads becomes RGB."""
    name = "b.jpg" if mode == "CMYK" else "b.png"
    Image.open(folder / "a.png").convert(mode).save(folder / name)
    assert CaptionImages(metadata(folder, row(file_name=name)), 20)[0].image.shape == (3, 20, 20)


def test_transparent_is_white(folder):
    Image.new("RGBA", (30, 30), (0, 0, 0, 0)).save(folder / "b.png")
    assert (CaptionImages(metadata(folder, row(file_name="b.png")), 20)[0].image == 255).all()


def test_sixteen_bits_are_scaled(folder):
    Image.fromarray(np.full((30, 30), 128 << 8, dtype=np.uint16)).save(folder / "b.png")
    assert (CaptionImages(metadata(folder, row(file_name="b.png")), 20)[0].image == 128).all()


def test_orientation_is_respected(folder):
    """Boxes are in pixels of the image as it is shown."""
    image = Image.open(folder / "a.png")
    exif = image.getexif()
    exif[0x0112] = 6  # shown turned by a quarter: what was left is on top
    image.save(folder / "b.jpg", exif=exif, quality=95)
    line = row(file_name="b.jpg", phrases=[region(box=[0, 20, 40, 40])])
    sample = CaptionImages(metadata(folder, line), 20)[0]
    assert sample.image[0, :9].min() > 200
    assert sample.phrases[0][0].box == (0, 0, 20, 10)


def test_byte_order_mark_and_blank_lines(folder):
    (folder / "metadata.jsonl").write_text("\ufeff" + json.dumps(row(caption="été")) + "\n\n", encoding="utf-8")
    assert CaptionImages(folder, 20)[0].captions == ["été"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{file_name: 1}", "line 2 is not JSON"),
        ("[1]", "line 2 is not a JSON object"),
        ({"caption": "a"}, "line 2 has no file_name"),
        ({"file_name": "a.png"}, "line 2 must have either caption"),
        (row(captions=["b"]), "line 2 must have either caption"),
        (row(caption=3), "line 2: caption must be text, not 3"),
        ({"file_name": "a.png", "captions": "b"}, "captions must be a list of strings"),
        ({"file_name": "a.png", "captions": []}, "captions is an empty list"),
        (row(caption="  "), "line 2: a caption is empty; correct it, or set on_error to skip"),
        (row(file_name=3), "file_name must be a string"),
        (row(file_name="b.png"), r"line 2: there is no image .*b\.png"),
        (row(file_name="../a.png"), "leads out of the folder"),
        (row(file_name="/a.png"), "leads out of the folder"),
        (row(negatives="no"), "negatives must be a list"),
        (row(phrases={}), "phrases must be a list"),
        (row(phrases=[{"start": 0}]), "phrase 0 must be an object with start and end"),
        (row(phrases=[region(end=11)]), "end 11 do not lie inside its caption of 10 characters"),
        (row(phrases=[region(start=5, end=5)]), "do not lie inside"),
        (row(phrases=[region(start=True)]), "do not lie inside"),
        (row(phrases=[region(box=[1, 2])]), "box must be four numbers"),
        (row(phrases=[region(caption=1)]), "caption must be an index from 0 to 0, not 1"),
        (row(phrases=[region(box=[1, 2, 3])]), "box must be four numbers"),
        (row(phrases=[region(box=[1, 2, float("nan"), 3])]), "box must be four numbers"),
        (row(phrases=[region(box=[3, 0, 1, 5])]), "left < right and top < bottom"),
    ],
)
def test_wrong_line(folder, line, message):
    with pytest.raises(ValueError, match=message):
        CaptionImages(metadata(folder, row(), line), 20)


def test_wrong_folder(tmp_path):
    """Nothing there, no metadata, empty metadata, another encoding: each says what to do."""
    for message in ("there is no folder", "there is no file", "is empty", "not UTF-8"):
        with pytest.raises(ValueError, match=message):
            CaptionImages(tmp_path / "train", 20)
        if message == "there is no folder":
            (tmp_path / "train").mkdir()
        else:
            (tmp_path / "train" / "metadata.jsonl").write_bytes(b"\n" if message == "there is no file" else b"\xff")


def broken(folder):
    """A folder with one good row, then a cut image, a text file, a missing image and an empty caption."""
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:60])
    (folder / "text.png").write_text("not an image")
    names = ["a.png", "cut.png", "text.png", "missing.png"]
    return metadata(folder, *[row(file_name=name) for name in names], row(caption=""))


def test_broken_image_raises_with_its_name(folder):
    broken(folder)
    for name in ("cut.png", "text.png"):
        data = CaptionImages(metadata(folder, row(), row(file_name=name)), 20)
        with pytest.raises(ValueError, match=rf"line 2: the image .*{name} cannot be read .*set on_error to skip"):
            data[1]


def test_broken_rows_are_skipped_with_one_warning(folder):
    with pytest.warns(
        UserWarning, match=r"skipped 4 of the 5 images .* the first: .*line 2: the image .*cut\.png"
    ) as w:
        data = CaptionImages(broken(folder), 20, on_error="skip")
    assert len(w) == 1
    assert len(data) == 1
    assert data[0].captions == ["a red half"]


def test_nothing_left_to_skip_to(folder):
    with pytest.raises(ValueError, match="nothing is left"):
        CaptionImages(metadata(folder, row(caption="")), 20, on_error="skip")


def test_datamodule(folder):
    """Each stage reads and checks the splits that it needs, before training."""
    for split in ("train", "val"):
        (folder / split).mkdir()
        (folder / split / "a.png").write_bytes((folder / "a.png").read_bytes())
        metadata(folder / split, *[row()] * 5)
    data = CaptionFolder(str(folder), image_size=20, batch_size=2)
    data.setup("fit")
    assert [len(batch) for batch in data.train_dataloader()] == [2, 2]
    assert [batch.ids.tolist() for batch in data.val_dataloader()] == [[0, 1], [2, 3], [4]]
    assert next(iter(data.val_dataloader())).images.dtype == torch.uint8
    with pytest.raises(ValueError, match=r"there is no folder .*test"):
        data.setup("test")


def test_image_size_must_be_positive(folder):
    with pytest.raises(ValueError, match="image_size must be a positive"):
        CaptionImages(metadata(folder, row()), 0)


@pytest.mark.parametrize("box", [(3.0, 5.0, 93.0, 77.0), (3.5, 5.0, 93.5, 77.0)])
def test_a_view_shows_what_pillow_would(box: tuple[float, float, float, float]) -> None:
    """Whole pixels are scaled by torch and others by Pillow, both with antialiasing: a few values round elsewhere."""
    coarse = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((120, 90), Image.Resampling.BICUBIC)
    found = View(box, 32).image(image)
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC, box=box)).transpose(2, 0, 1)
    difference = np.abs(found.numpy().astype(int) - expected)
    assert difference.max() <= 2
    assert difference.mean() < 0.1


def test_a_centre_crop_begins_at_a_whole_pixel() -> None:
    """So that torch can scale it; a fraction of timm's may begin between pixels."""
    assert Preprocessing().view(101, 80, 64).source == (10.0, 0.0, 90.0, 80.0)
    assert Preprocessing(fraction=0.9).view(101, 80, 64).source == (14.5, 4.0, 86.5, 76.0)
