"""Tiny data sets of images, in exactly the layouts in which the real ones are published."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

STEP = 20  # the colour of image or class i is (STEP i, STEP i, STEP i)
SIZE = (40, 30)


def grey(path: Path, number: int, size: tuple[int, int] = SIZE) -> Path:
    """An image of one grey, by which a model of tables knows it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (STEP * number,) * 3).save(path, quality=100, subsampling=0)
    return path


def class_folders(root: Path, images: dict[str, Sequence[int]]) -> Path:
    """ImageNet's `val` with a folder for each class: root/n01440764/ILSVRC2012_val_00000293.JPEG."""
    for folder, numbers in images.items():
        for number in numbers:
            grey(root / folder / f"ILSVRC2012_val_{number:08}.JPEG", number)
    return root


def label_map(path: Path, values: np.ndarray, palette: bool = True) -> Path:
    """A PNG with one number for each pixel, as a palette image (VOC) or a grey one (COCO-Stuff, ADE20K)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values.astype(np.uint8), "L")
    if palette:
        colours = [channel for value in range(256) for channel in (value, 255 - value, value // 2)]
        image = Image.frombytes("P", image.size, image.tobytes())
        image.putpalette(colours)
    image.save(path)
    return path


def picture(path: Path, values: np.ndarray) -> Path:
    """A lossless image under its published name, whose greys are `values`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.repeat((STEP * values).astype(np.uint8)[..., None], 3, -1)).save(path, "PNG")
    return path


def halves(left: int, right: int, width: int = 32, height: int = 16) -> np.ndarray:
    """A map of two values."""
    return np.repeat([[left] * (width // 2) + [right] * (width - width // 2)], height, 0)


# What is seen (the greys of the image), and what is true, of three images; 255 is not labelled.
SEEN = [halves(1, 2), halves(2, 3), halves(1, 4).T]
TRUE = [halves(1, 2), halves(2, 1), halves(1, 0).T]


def voc(root: Path) -> Path:
    """VOCdevkit/VOC2012."""
    names = ["2007_000033", "2007_000042", "2007_000061"]
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/val.txt").write_text("".join(name + "\n" for name in names))
    for name, seen, true in zip(names, SEEN, TRUE, strict=True):
        picture(root / f"JPEGImages/{name}.jpg", seen)
        label_map(root / f"SegmentationClass/{name}.png", _bordered(true))
    return root


def context(root: Path) -> Path:
    """VOCdevkit/VOC2010 with what MMSegmentation makes of Pascal Context."""
    names = ["2008_000002", "2008_000007", "2008_000016"]
    (root / "ImageSets/SegmentationContext").mkdir(parents=True)
    (root / "ImageSets/SegmentationContext/val.txt").write_text("".join(name + "\n" for name in names))
    for name, seen, true in zip(names, SEEN, TRUE, strict=True):
        picture(root / f"JPEGImages/{name}.jpg", seen)
        label_map(root / f"SegmentationClassContext/{name}.png", true, palette=False)
    return root


def coco_stuff(root: Path) -> Path:
    """COCO's images and the published stuffthingmaps; beside them a map that MMSegmentation has made of one."""
    for number, seen, true in zip((139, 285, 632), SEEN, TRUE, strict=True):
        picture(root / f"images/val2017/{number:012}.jpg", seen)
        values = np.select([true == 1, true == 2], [0, 181], 255)  # person, wood
        label_map(root / f"annotations/val2017/{number:012}.png", values, palette=False)
    label_map(root / "annotations/val2017/000000000139_labelTrainIds.png", SEEN[0], palette=False)
    return root


def ade20k(root: Path) -> Path:
    """ADEChallengeData2016."""
    for number, (seen, true) in enumerate(zip(SEEN, TRUE, strict=True), start=1):
        picture(root / f"images/validation/ADE_val_{number:08}.jpg", seen)
        label_map(root / f"annotations/validation/ADE_val_{number:08}.png", true, palette=False)
    return root


def _bordered(true: np.ndarray) -> np.ndarray:
    """With a void line round the image, as VOC has it round objects."""
    values = true.copy()
    values[0] = 255
    return values


CAPTIONS = [  # of one image of Flickr30k Entities; chain 3 has two boxes, 4 is a scene, 0 is not visual
    "[/EN#3/people Two red cups] near [/EN#5/other a blue book] .",
    "[/EN#5/clothing/other The book] lies in [/EN#4/scene a street] with [/EN#0/notvisual each other] .",
]
BOXES = {"3": [(1, 1, 20, 15), (61, 1, 80, 15)], "5": [(21, 31, 60, 60)]}


def flickr30k_entities(root: Path, images: int = 3) -> Path:
    """Annotations, Sentences, flickr30k-images and the lists; image n is of grey n."""
    numbers = [1007129816 + n for n in range(images)]
    for folder in ("Annotations", "Sentences"):
        (root / folder).mkdir(parents=True)
    for split, chosen in {"train": [], "val": numbers[:1], "test": numbers}.items():
        (root / f"{split}.txt").write_text("\n".join(map(str, chosen)))
    for grey_number, number in enumerate(numbers):
        grey(root / f"flickr30k-images/{number}.jpg", grey_number, (80, 60))
        (root / f"Sentences/{number}.txt").write_text("\n".join(CAPTIONS) + "\n")
        (root / f"Annotations/{number}.xml").write_text(entities_xml(number))
    return root


def entities_xml(number: int) -> str:
    """The annotations of one image; a box may belong to two chains."""
    objects = "".join(
        f"\t<object>\n\t\t<name>{chain}</name>\n\t\t<name>9{chain}</name>\n\t\t<bndbox>\n\t\t\t<xmin>{a}</xmin>\n"
        f"\t\t\t<ymin>{b}</ymin>\n\t\t\t<xmax>{c}</xmax>\n\t\t\t<ymax>{d}</ymax>\n\t\t</bndbox>\n\t</object>\n"
        for chain, boxes in BOXES.items()
        for a, b, c, d in boxes
    )
    return (
        f"<annotation>\n\t<filename>{number}.jpg</filename>\n\t<size>\n\t\t<width>80</width>\n\t\t<height>60</height>\n"
        f"\t\t<depth>3</depth>\n\t</size>\n{objects}\t<object>\n\t\t<name>4</name>\n\t\t<scene>1</scene>\n"
        "\t\t<nobndbox>0</nobndbox>\n\t</object>\n</annotation>\n"
    )


def refcoco(root: Path, name: str = "refcoco", split_by: str = "unc", images: int = 2) -> Path:
    """The REFER toolbox's folder `data`: two objects in each image, the second one twice, in the order of no id."""
    refs, annotations, pictures = [], [], []
    for n in reversed(range(images)):
        number = 581857 + n
        file = f"COCO_train2014_{number:012}.jpg"
        grey(root / "images/mscoco/images/train2014" / file, n, (80, 60))
        pictures.append({"license": 1, "file_name": file, "coco_url": "", "height": 60, "width": 80, "id": number})
        for k, (box, sentences, split) in enumerate(
            [
                ([0, 0, 20.5, 15.25], ["red cup"], "val"),
                ([20, 30, 40, 30], ["the blue book", "a book on the right"], "val"),
                ([0, 0, 80, 60], ["all of it"], "testA"),
            ]
        ):
            ident = 10 * n + k
            annotations.append({"id": ident, "image_id": number, "bbox": box, "category_id": 1, "iscrowd": 0})
            refs.append(
                {
                    "ref_id": ident,
                    "ann_id": ident,
                    "image_id": number,
                    "category_id": 1,
                    "file_name": file.replace(".jpg", f"_{ident}.jpg"),
                    "split": split,
                    "sent_ids": list(range(len(sentences))),
                    "sentences": [
                        {"sent_id": i, "sent": sentence, "raw": sentence.title(), "tokens": sentence.split()}
                        for i, sentence in enumerate(sentences)
                    ],
                }
            )
    (root / name).mkdir(parents=True)
    with (root / name / f"refs({split_by}).p").open("wb") as file_:
        pickle.dump(refs, file_, protocol=0)  # as Python 2 wrote it
    content = {"info": {}, "licenses": [], "images": pictures, "annotations": annotations, "categories": []}
    (root / name / "instances.json").write_text(json.dumps(content))
    return root
