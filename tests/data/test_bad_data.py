"""Each mistake with images and captions gives one message that says what is wrong and what to do."""

import gc
import json
import os
import warnings
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from patchword.data.pixels import read_image
from patchword.data.tables.image_text import ImageText
from patchword.errors import UserError
from tests.data import formats

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(autouse=True, scope="module")
def _no_open_files():
    """`datasets` leaves CSV files that were read as a stream open."""
    yield
    gc.collect()


def table(folder, *rows, header="image,caption", name="list.csv"):
    """Write a table with these lines and a valid image next to it."""
    (folder / "good.jpg").write_bytes(formats.jpeg(1))
    (folder / name).write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return str(folder / name)


def csv(folder, *rows, **options):
    return {"source": "csv", "train": table(folder, *rows), **options}


def link(folder, name, target):
    os.symlink(target, folder / name)
    return name


def outside(folder):
    """Write an image outside of the folder of the data."""
    (folder / "data").mkdir(exist_ok=True)
    (folder / "secret.jpg").write_bytes(formats.jpeg(2))
    return folder / "data"


def script(folder):
    (folder / "set").mkdir()
    (folder / "set" / "set.py").write_text("raise SystemExit('run')")
    return {"source": str(folder / "set"), "train": "train"}


def parquet(folder, **options):
    path = formats.hub_parquet(folder / "a.parquet", [1], **options)
    return {"source": "parquet", "train": str(path)}


def twice(path):
    """Write a parquet file with two columns of the same name."""
    columns = [pa.array(["good.jpg"]), pa.array(["good.jpg"]), pa.array(["a"]), pa.array(["b"])]
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_arrays(columns, names=["image", "file_name", "caption", "caption"]), path)
    return str(path)


def bomb(folder):
    """Write a parquet file of 1.4 kB with 100 captions of 20 MB."""
    captions = pa.DictionaryArray.from_arrays(pa.array([0] * 100), pa.array(["a" * 20_000_000]))
    table = pa.table({"image": ["good.jpg"] * 100, "caption": captions})
    pq.write_table(table, folder / "bomb.parquet", compression="zstd")
    return {"source": "parquet", "train": str(folder / "bomb.parquet")}


def broken_jsonl(folder):
    formats.imagefolder(folder / "train")
    (folder / "train" / "metadata.jsonl").write_text("{file_name: 1}\n")
    return {"source": "imagefolder", "train": str(folder / "train")}


def cut_tar(folder):
    path = formats.webdataset(folder) / "00000.tar"
    path.write_bytes(path.read_bytes()[:700])
    return {"source": "webdataset", "train": str(path), "image": "jpg", "caption": "txt"}


def original_list(folder):
    """Write a list in the form of Conceptual Captions: one caption and one address per line, no header."""
    (folder / "cc3m.tsv").write_text("a very typical bus\thttp://example.org/1.jpg\nsierra\thttp://example.org/2.jpg\n")
    return {"source": "tsv", "train": str(folder / "cc3m.tsv")}


STREAM = {"streaming": True, "steps_per_epoch": 1}
SPAN = {"start": 0, "end": 99, "box": [0, 0, 1, 1]}
MISTAKES = {
    "no such file": (
        lambda f: {"source": "parquet", "train": "no.parquet"},
        r"data\.train: there is no file no\.parquet",
    ),
    "no such folder": (
        lambda f: {"source": "./no", "train": "train"},
        r"there is no folder \./no: .*parquet",
    ),
    "no such image folder": (
        lambda f: {"source": "imagefolder", "train": "no"},
        "there is no folder no: .*metadata",
    ),
    "no such data set": (
        lambda f: {"source": "nobody/nothing", "train": "train"},
        r"data\.source: HF_HUB_OFFLINE is set, and nobody/nothing is not in the cache .*: unset it",
    ),
    "no such split": (
        lambda f: {"source": str(formats.hub_folder(f)), "train": "training"},
        r"training of .* cannot be read .*[Uu]nknown split",
    ),
    "a script": (script, "is a script, and code from the hub is never run"),
    "no metadata": (
        lambda f: {"source": "imagefolder", "train": str(outside(f))},
        r"has no metadata\.jsonl .* with file_name and caption",
    ),
    "metadata that is not JSON": (broken_jsonl, r"data\.train: .* cannot be read"),
    "a file that is no parquet": (
        lambda f: {"source": "parquet", "train": table(f, name="a.parquet")},
        r"a\.parquet cannot be read",
    ),
    "captions that grow": (bomb, r"bomb\.parquet: column caption would grow from \d+ to 20\d+ bytes or more"),
    "a stream of captions that grow": (lambda f: {**bomb(f), **STREAM}, "column caption would grow"),
    "a stream that is no parquet": (
        lambda f: {"source": "parquet", "train": table(f, name="a.parquet"), **STREAM},
        r"a\.parquet cannot be read",
    ),
    "a tar that is cut off": (cut_tar, r"00000\.tar is not a complete tar \(unexpected end of data\)"),
    "two columns of one name": (
        lambda f: {"source": "csv", "train": table(f, "good.jpg,a,b", header="image,caption,caption")},
        r"list\.csv has more than one column 'caption': rename or remove the others",
    ),
    "two columns of one name in a later file": (
        lambda f: {
            "source": "tsv",
            "train": [
                table(f, "good.jpg\ta", header="image\tcaption", name="a.tsv"),
                table(f, "good.jpg\ta\tb", header="image\tcaption\tcaption", name="b.tsv"),
            ],
            **STREAM,
        },
        r"b\.tsv has more than one column 'caption'",
    ),
    "two columns of one name in parquet": (
        lambda f: {"source": "parquet", "train": twice(f / "a.parquet")},
        r"a\.parquet has more than one column 'caption'",
    ),
    "a stream with two columns of one name": (
        lambda f: {"source": "parquet", "train": twice(f / "a.parquet"), **STREAM},
        r"a\.parquet has more than one column 'caption'",
    ),
    "two columns of one name in metadata": (
        lambda f: {"source": "imagefolder", "train": str(Path(twice(f / "set/metadata.parquet")).parent)},
        r"metadata\.parquet has more than one column 'caption'",
    ),
    "two columns of one name in a folder": (
        lambda f: {
            "source": str(Path(table(f, "good.jpg,a,b", header="image,caption,caption", name="train.csv")).parent),
            "train": "train",
        },
        r"train\.csv has more than one column 'caption'",
    ),
    "an empty table": (csv, r"list\.csv cannot be read \(it has no rows"),
    "no such column": (
        lambda f: csv(f, "good.jpg,a", image="picture"),
        r"list\.csv\) has no column 'picture', only image, caption: set data\.image",
    ),
    "no such caption column": (
        lambda f: csv(f, "good.jpg,a", caption=["caption", "text"]),
        r"no column 'text', only image, caption: set data\.caption",
    ),
    "a path of no column": (
        lambda f: csv(f, "good.jpg,a", image="{key}.jpg"),
        r"does not fit the columns image, caption",
    ),
    "no phrases": (lambda f: csv(f, "good.jpg,a", phrases="data"), r"no column 'phrases', .*: set data\.phrases"),
    "a caption that is a number": (
        lambda f: {"source": "json", "train": table(f, header='{"image": "good.jpg", "caption": 12}', name="a.jsonl")},
        "column caption must contain text, not '12'",
    ),
    "the published list of addresses": (
        original_list,
        r"no column 'image', only a very typical bus, .*: set data\.image; .* download the images first",
    ),
    "addresses": (
        lambda f: csv(f, "https://example.org/1.jpg,a"),
        "is an address, not an image: download the images first",
    ),
    "a path out of the folder": (
        lambda f: csv(outside(f), "../secret.jpg,a"),
        r"row 0: the image '\.\./secret\.jpg' leads out of .*data",
    ),
    "an absolute path": (lambda f: csv(outside(f), f"{f}/secret.jpg,a"), "leads out of the folder"),
    "a link out of the folder": (
        lambda f: csv(outside(f), f"{link(outside(f), 'link.jpg', f / 'secret.jpg')},a"),
        "'link.jpg' leads out of the folder",
    ),
    "an image as text": (
        lambda f: csv(f, "/9j/4AAQSkZJRgAB" + "A" * 9000 + ",a"),
        r"^.{,700}$",  # not the whole of it
    ),
    "a missing image": (
        lambda f: csv(f, "no.jpg,a", max_broken=0),
        r"max_broken = 0 .* row 0 \(no\.jpg\): there is no image",
    ),
    "an empty caption": (lambda f: csv(f, "good.jpg,", max_broken=0), "its caption is empty"),
    "an image of many pixels": (
        lambda f: csv(f, "good.jpg,a", max_broken=0, max_pixels=400),
        "it has 24 x 20 pixels, more than 400",
    ),
    "a phrase beyond its caption": (
        lambda f: {**parquet(f, phrases=[[SPAN]]), "phrases": "data"},
        "phrase 0: start 0 and end 99 are not inside its caption of 9 characters",
    ),
    "a format with a letter missing": (
        lambda f: {**csv(f, "good.jpg,a"), "source": "parqet"},
        "data.source: there is no format parqet; did you mean parquet",
    ),
    "an unknown kind of phrases": (
        lambda f: csv(f, "good.jpg,a", phrases="nouns"),
        "must be none, auto, words, spacy, .* not 'nouns'",
    ),
    "a model that is not installed": (
        lambda f: csv(f, "good.jpg,a", phrases="spacy:no_such_model"),
        "the spaCy model no_such_model is not installed: pip install it",
    ),
    "a stream without length": (lambda f: csv(f, streaming=True), "streaming needs steps_per_epoch"),
    "a length without stream": (lambda f: csv(f, steps_per_epoch=3), "steps_per_epoch requires streaming"),
    "too many pixels allowed": (lambda f: csv(f, max_pixels=10**9), "must be between 1 and Pillow's limit"),
    "a negative limit": (lambda f: csv(f, max_broken=-1), "max_broken must be 0"),
    "no pixels": (lambda f: csv(f, image_size=0), "image_size must be from 1 to 4096 pixels, not 0"),
    "no buffer": (lambda f: csv(f, shuffle_buffer=0), "shuffle_buffer must be 1"),
    "no column": (lambda f: csv(f, caption=[]), "caption is empty"),
}


def first_batch(options):
    data = ImageText(**options)
    data.setup("fit")
    return next(iter(data.train_dataloader()))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_clear_message(tmp_path, mistake):
    make, message = MISTAKES[mistake]
    options = {"resize_mode": "crop", "image_size": 16, "batch_size": 1} | make(tmp_path)
    with pytest.raises(UserError, match=message):
        first_batch(options)


def test_a_bomb_is_a_broken_image(tmp_path, monkeypatch):
    """Neither Pillow's warning nor its error ends training, and the image is not decoded."""
    Image.new("1", (300, 200)).save(tmp_path / "bomb.png")
    for limit in (59_999, 10_000):  # Pillow warns above its limit, and refuses above twice that
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(UserError, match=r"bomb\.png cannot be read \(Image size \(60000 pixels\) exceeds"):
                read_image(tmp_path / "bomb.png")
        (tmp_path / "good.png").write_bytes(formats.jpeg(1))
        path = table(tmp_path, "bomb.png,a", "good.jpg,b")
        batch = first_batch({"source": "csv", "train": path, "resize_mode": "crop", "image_size": 16, "batch_size": 2})
        assert batch.captions == ["b", "b"]
        assert "exceeds" in batch.skipped[0].reason


def test_too_many_broken_samples_end_training(tmp_path):
    """More broken samples than allowed raise an error that names the first ones; all of them are listed in the file."""
    from patchword.data.batch import Skipped
    from patchword.data.skipping import SkippedList

    found = SkippedList(2, tmp_path)
    broken = [Skipped(f"row {i}", "cut off") for i in range(4)]
    with pytest.warns(UserWarning, match=r"broken sample: row 0: cut off; .*skipped\.jsonl lists all"):
        found.add("train", broken[:2])
    found.add("train", broken[:2])
    with pytest.warns(UserWarning, match="broken sample: row 0"):
        found.add("val", broken[:1])
    with pytest.raises(UserError, match=r"max_broken = 2 .*: row 0: cut off; row 1: cut off; row 2: cut"):
        found.add("train", broken[1:3])
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [(line["split"], line["key"]) for line in lines] == [
        *(("train", "row 0"), ("train", "row 1"), ("val", "row 0"), ("train", "row 2"))
    ]
