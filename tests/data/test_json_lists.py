"""JSON lists in their published formats give each image its own captions, or one clear message."""

import json
from pathlib import Path

import datasets
import pytest

from patchword.data.tables.image_text import ImageText
from patchword.data.tables.json_lists import read_rows
from patchword.errors import UserError
from tests.data import formats


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def pictures(folder, numbers=range(3)):
    for n in numbers:
        (folder / f"{n}.jpg").write_bytes(formats.jpeg(n))
    return numbers


def written(folder, content, name="list.json"):
    """Write a file with one value, or with several values, one per line."""
    text = "\n".join(map(json.dumps, content)) if name.endswith("l") else json.dumps(content)
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def two(n):
    return [f"caption {n}", f"again {n}"]


def coco(numbers):
    """Return COCO's `captions_*.json`, whose annotations are in a different order than the images."""
    images = [{"id": 10 + n, "file_name": f"{n}.jpg", "license": 1} for n in numbers]
    annotations = [
        {"image_id": 10 + n, "id": n, "caption": text} for i in (0, 1) for n in numbers for text in [two(n)[i]]
    ]
    return {"info": {}, "images": images, "annotations": annotations}


def karpathy(numbers):
    """Return `dataset_coco.json` with all splits; all images except number 0 are in `train` or `restval`."""
    split = ["test", "train", "restval"]
    records = [
        {"filepath": ".", "filename": f"{n}.jpg", "split": split[n], "sentences": [{"raw": text} for text in two(n)]}
        for n in numbers
    ]
    return {"images": records, "dataset": "coco"}


def llava(numbers):
    """Return conversations in ShareGPT4V's format, with ids of several types, which a table cannot store."""
    said = [("human", "<image>\nWhat is this?"), ("gpt", "caption {}")]
    return [
        {
            "id": n if n else "first",
            "image": f"{n}.jpg",
            "conversations": [{"from": who, "value": text.format(n)} for who, text in said],
        }
        for n in numbers
    ]


FORMS = {
    "COCO": (coco, {"captions": "all"}),
    "annotations alone": (
        lambda numbers: {
            "annotations": [{"image_id": n, "image": f"{n}.jpg", "caption": t} for n in numbers for t in two(n)]
        },
        {"captions": "all"},
    ),
    "Karpathy": (karpathy, {"image": "{filepath}/{filename}", "caption": "sentences.raw", "captions": "all"}),
    "LLaVA": (llava, {"caption": "conversations.1.value"}),
    "BLIP": (lambda numbers: [{"image": f"{n}.jpg", "caption": two(n), "image_id": str(n)} for n in numbers], {}),
    "file to captions": (lambda numbers: {f"{n}.jpg": two(n) for n in numbers}, {"captions": "all"}),
    "file to caption": (lambda numbers: {f"{n}.jpg": f"caption {n}" for n in numbers}, {}),
}


def data(train, **options):
    module = ImageText(
        **{"source": "json", "train": train, "resize_mode": "crop", "image_size": 16, "batch_size": 1} | options
    )
    module.setup("fit")
    return module


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_published_forms(tmp_path, form, streaming):
    """A table and a stream give every image with its captions."""
    make, options = FORMS[form]
    path = written(tmp_path, make(pictures(tmp_path)))
    if form == "Karpathy":
        path += "#split=test,train,restval"
    stream = {"streaming": True, "steps_per_epoch": 3} if streaming else {}
    batches = [*data(path, **options, **stream).train_dataloader()]
    found = {round(float(batch.images[0, 0].float().mean()) / 10): batch.captions for batch in batches}
    expected = two if options.get("captions") == "all" else lambda n: [f"caption {n}"]
    assert found == {n: expected(n) for n in range(3)}


def test_rows_are_selected_by_a_field(tmp_path):
    """`#split=` selects rows of Karpathy's file and changes the fingerprint; the test split is not trained on."""
    path = written(tmp_path, karpathy(pictures(tmp_path)))
    options = {"image": "{filename}", "caption": "sentences.raw"}
    with pytest.raises(UserError, match=r"the splits restval, test, train: .*list\.json#split=restval"):
        data(path, **options)
    module = data(f"{path}#split=train,restval", test=f"{path}#split=test", **options)
    assert (len(module.split("train")), len(module.split("test"))) == (2, 1)
    assert module.fingerprint("train") != data(f"{path}#split=train", **options).fingerprint("train")
    with pytest.raises(UserError, match="has no row whose split is dev"):
        data(f"{path}#split=dev", **options)
    with pytest.raises(UserError, match=r"data\.train: #dev must name a field"):
        data(f"{path}#dev", **options)


def test_lines_and_changes(tmp_path):
    """JSON lines do not need their own file extension; a changed file is read again instead of its cached table."""
    rows = [{"image": f"{n}.jpg", "caption": f"caption {n}"} for n in pictures(tmp_path)]
    for name in ("a.jsonl", "a.json"):
        path = Path(written(tmp_path, rows, "a.jsonl")).rename(tmp_path / name)
        assert [*read_rows([str(path)], None)] == rows
    assert len(data(str(path)).split("train")) == 3
    written(tmp_path, rows[:2], "a.json")
    assert len(data(str(path)).split("train")) == 2


def test_splits_may_have_sources_of_their_own(tmp_path):
    """Training on tars and validating on COCO works; a split without a source raises an error."""
    (tmp_path / "coco").mkdir()
    path = written(tmp_path, coco(pictures(tmp_path / "coco")))
    options = {
        "source": {"train": "webdataset", "val": "json"},
        "image": {"train": "jpg", "val": "image"},
        "caption": {"train": "txt", "val": ["caption"]},
        "root": {"train": str(tmp_path), "val": str(tmp_path / "coco")},
        "val": path,
    }
    module = data(str(formats.webdataset(tmp_path / "tars") / "*.tar"), **options)
    assert module.split("train")[5].captions == ["caption 5"]
    assert module.split("val")[2].captions == two(2)
    module.patterns["test"] = path
    with pytest.raises(UserError, match=r"data\.source has values for train, val, but none for test"):
        module.split("test")
    with pytest.raises(UserError, match=r"data\.image has the key 'valid'"):
        data(path, image={"train": "a", "valid": "b"})


MISTAKES = {
    "deep": ("[" * 100_000 + "]" * 100_000, "is not valid JSON"),
    "digits": ('[{"image": "0.jpg", "caption": "a", "id": ' + "1" * 5_001 + "}]", "is not valid JSON"),
    "a repeated key": (
        '[{"image": "0.jpg", "caption": "a", "caption": "b"}]',
        r"list\.json is not valid JSON \(the key 'caption' occurs more than once in one object\)",
    ),
    "a repeated file name": ('{"0.jpg": "a", "0.jpg": "b"}', r"list\.json .*the key '0\.jpg' occurs more than once"),
    "a repeated key in a line": (
        '{"image": "0.jpg", "image": "1.jpg", "caption": "a"}\n{"image": "0.jpg", "caption": "a"}',
        r"list\.json, line 1 is not valid JSON \(the key 'image' occurs",
    ),
    "cut off": ('[{"image": "0.jpg", "capt', "is not valid JSON"),
    "another encoding": ('[{"image": "0.jpg", "caption": "Hünd"}]', r"list\.json is not UTF-8 text .*save it"),
    "a number": ("12", "list.json contains 12, but must contain a list of objects"),
    "names": ('["a.jpg"]', 'item 0 of its list must be an object, not "a.jpg"'),
    "large": (
        json.dumps({f"file {n}": {"caption": "a"} for n in range(9_000)}),
        r"an object with 9000 key\(s\): file 0",
    ),
    "instances": (
        json.dumps({"images": [{"id": 1, "file_name": "0.jpg"}], "annotations": [{"image_id": 1, "bbox": []}]}),
        r"not every annotation has an image_id and a caption: .*captions_\*\.json",
    ),
    "an unknown image": (
        json.dumps({"images": [{"id": 1, "file_name": "0.jpg"}], "annotations": [{"image_id": 2, "caption": "a"}]}),
        "an annotation refers to image 2, which is not among its images",
    ),
    "many columns": (
        json.dumps([{f"column {n}": "x" * 99 for n in range(9_000)}]),
        "has no column 'image', only column 0",
    ),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(tmp_path, mistake, streaming):
    """The message is short whatever the file contains."""
    text, message = MISTAKES[mistake]
    (tmp_path / "list.json").write_text(text, encoding="latin-1")
    stream = {"streaming": True, "steps_per_epoch": 3} if streaming else {}
    with pytest.raises(UserError, match=message) as raised:
        data(str(tmp_path / "list.json"), **stream)
    assert len(str(raised.value)) < 1_000
