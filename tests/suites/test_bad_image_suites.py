"""Tests the error messages for wrong image data sets: the file and what to do."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from patchword.data.pixels import Preprocessing
from patchword.errors import UserError
from patchword.suites import (
    VOC20,
    VOC21,
    ADE20k,
    Classification,
    CocoStuff,
    Context59,
    Flickr30kEntities,
    RefCOCO,
    RefCOCOg,
    Suite,
)
from patchword.suites.files import Framing
from patchword.suites.segmentation import Labeling
from tests.suites import published_regions as published
from tests.suites.color_model import model

FRAMING = Framing(Preprocessing("stretch"), 16)
ONE = Labeling(short_side=None)

# The last entity expands to 2^17 copies of the first entity.
LAUGHS = (
    '<!DOCTYPE x [<!ENTITY a0 "ha">'
    + "".join(f'<!ENTITY a{i + 1} "&a{i};&a{i};">' for i in range(17))
    + "]><annotation>&a17;</annotation>"
)


def classes(root: Path) -> Path:
    return published.class_folders(root, {"cat": [0], "dog": [1]})


def break_label(root: Path, values: np.ndarray) -> None:
    published.label_map(root / "SegmentationClass/2007_000033.png", values)


def change(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def code(root: Path) -> None:
    class Touch:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (root / "ran",))

    (root / "refcoco/refs(unc).p").write_bytes(pickle.dumps([Touch()]))


def without(root: Path, key: str) -> None:
    path = root / "refcoco/instances.json"
    content = json.loads(path.read_text())
    del content["annotations"][0][key]
    path.write_text(json.dumps(content))


def name(root: Path, text: str) -> str:
    (root / "names.json").write_text(text)
    return str(root / "names.json")


def text(root: Path, lines: str) -> str:
    (root / "some.txt").write_text(lines)
    return str(root / "some.txt")


NUMBER = "1007129816"
# A function that writes the data, a function that breaks it, the suite, and words of the message.
CASES: dict[str, tuple[Callable[[Path], Path], Callable[[Path], object], Callable[[str], Suite], tuple[str, ...]]] = {
    "no folder": (lambda root: root, lambda root: None, lambda root: Classification(root + "/x"), ("data.root",)),
    "one class": (
        lambda root: published.class_folders(root, {"cat": [0]}),
        lambda root: None,
        Classification,
        ("1 folder", "two or more"),
    ),
    "no images": (
        lambda root: root,
        lambda root: [(root / folder).mkdir() for folder in ("cat", "dog")],
        Classification,
        ("no images",),
    ),
    "an id is no name": (
        lambda root: published.class_folders(root, {"n01440764": [0], "n01443537": [1]}),
        lambda root: None,
        Classification,
        ("n01440764", "data.class_names to imagenet"),
    ),
    "a class without a name": (
        classes,
        lambda root: name(root, '{"cat": "cat"}'),
        lambda root: Classification(root, class_names=root + "/names.json"),
        ("names.json", "dog"),
    ),
    "a name that is none": (
        classes,
        lambda root: name(root, '{"cat": ["cat"], "dog": []}'),
        lambda root: Classification(root, class_names=root + "/names.json"),
        ("names.json", "dog"),
    ),
    "no such list of names": (
        classes,
        lambda root: None,
        lambda root: Classification(root, class_names="imagenet1k"),
        ("data.class_names", "imagenet1k"),
    ),
    "a template without a place": (
        classes,
        lambda root: text(root, "a photo of a {}.\na photo"),
        lambda root: Classification(root, prompts=root + "/some.txt"),
        ("some.txt, line 2", "{}"),
    ),
    "no such prompts": (
        classes,
        lambda root: None,
        lambda root: Classification(root, prompts="clipp"),
        ("clipp", "photo"),
    ),
    "a broken image": (
        classes,
        lambda root: next((root / "dog").iterdir()).write_bytes(b"\xff\xd8 no JPEG"),
        Classification,
        ("class 'dog'", "ILSVRC2012_val_00000001.JPEG"),
    ),
    "a list is missing": (
        published.voc,
        lambda root: (root / "ImageSets/Segmentation/val.txt").unlink(),
        lambda root: VOC20(root, labeling=ONE),
        ("val.txt", "VOCtrainval"),
    ),
    "an image is missing": (
        published.voc,
        lambda root: (root / "JPEGImages/2007_000033.jpg").unlink(),
        lambda root: VOC20(root, labeling=ONE),
        ("voc20_val", "2007_000033.jpg"),
    ),
    "a label map is missing": (
        published.voc,
        lambda root: (root / "SegmentationClass/2007_000033.png").unlink(),
        lambda root: VOC20(root, labeling=ONE),
        ("label map", "2007_000033.png"),
    ),
    "a list leads out of the folder": (
        published.voc,
        lambda root: (root / "ImageSets/Segmentation/val.txt").write_text("../../secret\n"),
        lambda root: VOC20(root, labeling=ONE),
        ("val.txt, line 1", "../../secret"),
    ),
    "a label that is none": (
        published.voc,
        lambda root: break_label(root, published.halves(1, 21)),
        lambda root: VOC21(root, 0.1, labeling=ONE),
        ("2007_000033.png", "21", "Pascal VOC"),
    ),
    "labels of another size": (
        published.voc,
        lambda root: break_label(root, published.halves(1, 2, 30)),
        lambda root: VOC20(root, labeling=ONE),
        ("30 x 16", "32 x 16"),
    ),
    "labels in color": (
        published.voc,
        lambda root: published.picture(root / "SegmentationClass/2007_000033.png", published.halves(1, 2)),
        lambda root: VOC20(root, labeling=ONE),
        ("2007_000033.png", "RGB", "8-bit"),
    ),
    "windows larger than the image": (
        published.voc,
        lambda root: None,
        lambda root: VOC20(root, labeling=Labeling(short_side=8)),
        ("short_side is 8", "16 or more"),
    ),
    "windows with gaps": (
        published.voc,
        lambda root: None,
        lambda root: VOC20(root, labeling=Labeling(short_side=32, stride=17)),
        ("stride", "17"),
    ),
    "too few names": (
        published.context,
        lambda root: text(root, "cat\ndog\n"),
        lambda root: Context59(root, labeling=Labeling(class_names=root + "/some.txt")),
        ("some.txt", "59 classes", "2"),
    ),
    "a temperature of 0": (published.voc, lambda root: None, lambda root: VOC21(root, 0.1, 0.0), ("data.temperature",)),
    "no maps of COCO-Stuff": (
        lambda root: root,
        lambda root: None,
        CocoStuff,
        ("annotations/val2017", "stuffthingmaps_trainval2017.zip"),
    ),
    "no maps of ADE20K": (lambda root: root, lambda root: None, ADE20k, ("ADEChallengeData2016",)),
    "not XML": (
        published.flickr30k_entities,
        lambda root: (root / f"Annotations/{NUMBER}.xml").write_text("<annotation><size>"),
        Flickr30kEntities,
        (f"{NUMBER}.xml", "XML"),
    ),
    "XML with entities": (
        published.flickr30k_entities,
        lambda root: (root / f"Annotations/{NUMBER}.xml").write_text(LAUGHS),
        Flickr30kEntities,
        (f"{NUMBER}.xml", "document type"),
    ),
    "XML with entities in UTF-16": (
        published.flickr30k_entities,
        lambda root: (root / f"Annotations/{NUMBER}.xml").write_text(LAUGHS, encoding="utf-16"),
        Flickr30kEntities,
        (f"{NUMBER}.xml", "document type"),
    ),
    "a box without a number": (
        published.flickr30k_entities,
        lambda root: change(root / f"Annotations/{NUMBER}.xml", "<xmax>60</xmax>", "<xmax>sixty</xmax>"),
        Flickr30kEntities,
        (f"{NUMBER}.xml", "xmax", "sixty"),
    ),
    "broken markup": (
        published.flickr30k_entities,
        lambda root: change(root / f"Sentences/{NUMBER}.txt", "/people", ""),
        Flickr30kEntities,
        (f"{NUMBER}.txt, line 1", "[/EN#3 Two red cups]"),
    ),
    "captions are missing": (
        published.flickr30k_entities,
        lambda root: (root / f"Sentences/{NUMBER}.txt").unlink(),
        Flickr30kEntities,
        (f"Sentences/{NUMBER}.txt", "annotations.zip"),
    ),
    "resized images": (
        published.flickr30k_entities,
        lambda root: published.gray(root / f"flickr30k-images/{NUMBER}.jpg", 0, (40, 30)),
        Flickr30kEntities,
        ("40 x 30", "80 x 60", "published"),
    ),
    "a list that is none": (
        published.flickr30k_entities,
        lambda root: (root / "test.txt").write_text("../../etc/passwd\n"),
        Flickr30kEntities,
        ("test.txt, line 1", "passwd"),
    ),
    "a pickle with code": (published.refcoco, code, RefCOCO, ("refs(unc).p", "pathlib", "No code was executed")),
    "not a pickle": (
        published.refcoco,
        lambda root: (root / "refcoco/refs(unc).p").write_bytes(b"<html>not found</html>"),
        RefCOCO,
        ("refs(unc).p", "published file"),
    ),
    "an annotation without a box": (
        published.refcoco,
        lambda root: without(root, "bbox"),
        RefCOCO,
        ("instances.json: annotation", "bbox"),
    ),
    "an annotation without an id": (
        published.refcoco,
        lambda root: without(root, "id"),
        RefCOCO,
        ("instances.json", "'id'"),
    ),
    "no such split": (
        published.refcoco,
        lambda root: None,
        lambda root: RefCOCOg(root, "testA"),
        ("testA", "val, test"),
    ),
    "no such splits": (
        published.refcoco,
        lambda root: None,
        lambda root: RefCOCO(root, split_by="umd"),
        ("data.split_by", "unc or google"),
    ),
}


def read_all(build: Callable[[str], Suite], root: str) -> None:
    suite = build(root)
    data = suite.read(FRAMING)
    for index in range(len(data)):  # type: ignore[arg-type]
        suite.collate([data[index]])


@pytest.mark.parametrize("case", CASES)
def test_one_clear_message(case: str, tmp_path: Path) -> None:
    """The message names the problem; it appears before the measurement or at the broken sample."""
    write, damage, build, words = CASES[case]
    root = write(tmp_path)
    damage(root)
    with pytest.raises(UserError) as raised:
        read_all(build, str(root))
    message = str(raised.value)
    for word in words:
        assert word in message
    assert len(message) < 400 + len(str(tmp_path)) * 3
    assert not (root / "ran").exists()


def test_names_without_a_token(tmp_path: Path) -> None:
    """A class name without tokens has no map."""
    names = text(tmp_path, "cat\n" + "dog\n" * 19)
    suite = VOC20(str(published.voc(tmp_path / "voc")), labeling=Labeling("align", "label", names))
    blind = model({})
    encode = blind.encode_texts

    def without_spans(captions: list[str]) -> object:
        texts, tokens = encode(captions)
        tokens.spans[1:] = 0
        return texts, tokens

    blind.encode_texts = without_spans
    with pytest.raises(UserError, match="'dog'"):
        suite.evaluation(blind)
