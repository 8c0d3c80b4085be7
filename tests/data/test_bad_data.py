"""Twenty mistakes with images and captions: each gives one message that names what is wrong and what to do."""

import gc
import json
import os
import warnings

import datasets
import pytest
from PIL import Image

from patchword.data.image_text import ImageText
from patchword.data.pixels import read_image
from patchword.errors import InputError
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
    """A table of these lines, beside a good image."""
    (folder / "good.jpg").write_bytes(formats.jpeg(1))
    (folder / name).write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return str(folder / name)


def csv(folder, *rows, **options):
    return {"source": "csv", "train": table(folder, *rows), **options}


def link(folder, name, target):
    os.symlink(target, folder / name)
    return name


def outside(folder):
    """An image that is not in the folder of the data."""
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


def broken_jsonl(folder):
    formats.imagefolder(folder / "train")
    (folder / "train" / "metadata.jsonl").write_text("{file_name: 1}\n")
    return {"source": "imagefolder", "train": str(folder / "train")}


def cut_tar(folder):
    path = formats.webdataset(folder) / "00000.tar"
    path.write_bytes(path.read_bytes()[:700])
    return {"source": "webdataset", "train": str(path), "image": "jpg", "caption": "txt"}


def original_list(folder):
    """The list that Conceptual Captions publishes: a caption and an address a line, no header."""
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
        r"there is no folder \./no; formats are parquet",
    ),
    "no such image folder": (
        lambda f: {"source": "imagefolder", "train": "no"},
        "there is no folder no: give one with",
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
    "a stream that is no parquet": (
        lambda f: {"source": "parquet", "train": table(f, name="a.parquet"), **STREAM},
        r"a\.parquet cannot be read",
    ),
    "a tar that is cut off": (cut_tar, r"00000\.tar cannot be read"),
    "an empty table": (csv, r"list\.csv cannot be read \(it has no rows"),
    "no such column": (
        lambda f: csv(f, "good.jpg,a", image="picture"),
        r"list\.csv\) has no column 'picture' but image, caption: set data\.image",
    ),
    "no such caption column": (
        lambda f: csv(f, "good.jpg,a", caption=["caption", "text"]),
        r"no column 'text' but image, caption: set data\.caption",
    ),
    "a path of no column": (
        lambda f: csv(f, "good.jpg,a", image="{key}.jpg"),
        r"does not fit the columns image, caption",
    ),
    "no phrases": (lambda f: csv(f, "good.jpg,a", phrases="data"), r"no column 'phrases' .*: set data\.phrases"),
    "a caption that is a number": (
        lambda f: {"source": "json", "train": table(f, header='{"image": "good.jpg", "caption": 12}', name="a.jsonl")},
        "column caption must hold text, not '12'",
    ),
    "the published list of addresses": (
        original_list,
        r"no column 'image' but a very typical bus, .*: set data\.image; .* download the images first",
    ),
    "addresses": (
        lambda f: csv(f, "https://example.org/1.jpg,a"),
        "is an address, not an image: download the images first, as with img2dataset",
    ),
    "a path out of the folder": (
        lambda f: csv(outside(f), "../secret.jpg,a"),
        r"row 0 \(\.\./secret\.jpg\): the image '\.\./secret\.jpg' leads out of .*data: give a path inside it",
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
        "phrase 0: start 0 and end 99 do not lie inside its caption of 9 characters",
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
    "a length without stream": (lambda f: csv(f, steps_per_epoch=3), "steps_per_epoch is for streaming"),
    "too many pixels allowed": (lambda f: csv(f, max_pixels=10**9), "must lie between 1 and Pillow's limit"),
    "a negative limit": (lambda f: csv(f, max_broken=-1), "max_broken must be 0"),
    "no pixels": (lambda f: csv(f, image_size=0), "image_size must be a positive number"),
    "no buffer": (lambda f: csv(f, shuffle_buffer=0), "shuffle_buffer must be 1"),
    "no column": (lambda f: csv(f, caption=[]), "caption is an empty list"),
}


def first_batch(options):
    data = ImageText(**options)
    data.setup("fit")
    return next(iter(data.train_dataloader()))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_clear_message(tmp_path, mistake):
    make, message = MISTAKES[mistake]
    options = {"fit": "crop", "image_size": 16, "batch_size": 1} | make(tmp_path)
    with pytest.raises(InputError, match=message):
        first_batch(options)


def test_a_bomb_is_a_broken_image(tmp_path, monkeypatch):
    """Neither Pillow's warning nor its error ends training, and nothing so large is decoded."""
    Image.new("1", (300, 200)).save(tmp_path / "bomb.png")
    for limit in (59_999, 10_000):  # Pillow warns above its limit, and refuses above twice that
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(InputError, match=r"bomb\.png cannot be read \(Image size \(60000 pixels\) exceeds"):
                read_image(tmp_path / "bomb.png")
        (tmp_path / "good.png").write_bytes(formats.jpeg(1))
        path = table(tmp_path, "bomb.png,a", "good.jpg,b")
        batch = first_batch({"source": "csv", "train": path, "fit": "crop", "image_size": 16, "batch_size": 2})
        assert batch.captions == ["b", "b"]
        assert "exceeds" in batch.skipped[0].reason


def test_too_many_broken_samples_end_training(tmp_path):
    """With the first ones named, once there are more than allowed, and all written down."""
    from patchword.data.batch import Skipped
    from patchword.data.skipping import SkippedList

    found = SkippedList(2, tmp_path)
    broken = [Skipped(f"row {i}", "cut off") for i in range(4)]
    with pytest.warns(UserWarning, match=r"broken sample: row 0: cut off; .*skipped\.jsonl lists all"):
        found.add("train", broken[:2])
    found.add("train", broken[:2])
    with pytest.warns(UserWarning, match="broken sample: row 0"):
        found.add("val", broken[:1])
    with pytest.raises(InputError, match=r"max_broken = 2 .*: row 0: cut off; row 1: cut off; row 2: cut"):
        found.add("train", broken[1:3])
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [(line["split"], line["key"]) for line in lines] == [
        *(("train", "row 0"), ("train", "row 1"), ("val", "row 0"), ("train", "row 2"))
    ]
