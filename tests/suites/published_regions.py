"""Tiny image data sets in the published layouts of the real data sets."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

STEP = 20  # the color of image or class i is (STEP i, STEP i, STEP i)
SIZE = (40, 30)


def gray(path: Path, number: int, size: tuple[int, int] = SIZE) -> Path:
    """Write an image of one gray value, which identifies the image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (STEP * number,) * 3).save(path, quality=100, subsampling=0)
    return path


def class_folders(root: Path, images: dict[str, Sequence[int]]) -> Path:
    """Write ImageNet's `val` with one folder per class: root/n01440764/ILSVRC2012_val_00000293.JPEG."""
    for folder, numbers in images.items():
        for number in numbers:
            gray(root / folder / f"ILSVRC2012_val_{number:08}.JPEG", number)
    return root


def label_map(path: Path, values: np.ndarray, palette: bool = True) -> Path:
    """Write a PNG with one number per pixel, as a palette image (VOC) or a gray image (COCO-Stuff, ADE20K)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values.astype(np.uint8), "L")
    if palette:
        colors = [channel for value in range(256) for channel in (value, 255 - value, value // 2)]
        image = Image.frombytes("P", image.size, image.tobytes())
        image.putpalette(colors)
    image.save(path)
    return path


def picture(path: Path, values: np.ndarray) -> Path:
    """Write a lossless image with the gray values `values` under its published name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.repeat((STEP * values).astype(np.uint8)[..., None], 3, -1)).save(path, "PNG")
    return path


def halves(left: int, right: int, width: int = 32, height: int = 16) -> np.ndarray:
    """A map of two values."""
    return np.repeat([[left] * (width // 2) + [right] * (width - width // 2)], height, 0)


# The gray values and the ground truth of three images; 255 is not labeled.
SEEN = [halves(1, 2), halves(2, 3), halves(1, 4).T]
TRUE = [halves(1, 2), halves(2, 1), halves(1, 0).T]


def voc(root: Path) -> Path:
    """Write VOCdevkit/VOC2012."""
    names = ["2007_000033", "2007_000042", "2007_000061"]
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/val.txt").write_text("".join(name + "\n" for name in names))
    for name, seen, true in zip(names, SEEN, TRUE, strict=True):
        picture(root / f"JPEGImages/{name}.jpg", seen)
        label_map(root / f"SegmentationClass/{name}.png", _bordered(true))
    return root


def context(root: Path) -> Path:
    """Write VOCdevkit/VOC2010 with the files that MMSegmentation creates for Pascal Context."""
    names = ["2008_000002", "2008_000007", "2008_000016"]
    (root / "ImageSets/SegmentationContext").mkdir(parents=True)
    (root / "ImageSets/SegmentationContext/val.txt").write_text("".join(name + "\n" for name in names))
    for name, seen, true in zip(names, SEEN, TRUE, strict=True):
        picture(root / f"JPEGImages/{name}.jpg", seen)
        label_map(root / f"SegmentationClassContext/{name}.png", true, palette=False)
    return root


def coco_stuff(root: Path) -> Path:
    """Write COCO's images and the published stuffthingmaps, and a label map as created by MMSegmentation."""
    for number, seen, true in zip((139, 285, 632), SEEN, TRUE, strict=True):
        picture(root / f"images/val2017/{number:012}.jpg", seen)
        values = np.select([true == 1, true == 2], [0, 181], 255)  # person, wood
        label_map(root / f"annotations/val2017/{number:012}.png", values, palette=False)
    label_map(root / "annotations/val2017/000000000139_labelTrainIds.png", SEEN[0], palette=False)
    return root


def ade20k(root: Path) -> Path:
    """Write ADEChallengeData2016."""
    for number, (seen, true) in enumerate(zip(SEEN, TRUE, strict=True), start=1):
        picture(root / f"images/validation/ADE_val_{number:08}.jpg", seen)
        label_map(root / f"annotations/validation/ADE_val_{number:08}.png", true, palette=False)
    return root


def cityscapes(root: Path) -> Path:
    """Write `leftImg8bit/val` and `gtFine/val` of two cities, and another label map of gtFine."""
    for number, (seen, true) in enumerate(zip(SEEN, TRUE, strict=True)):
        city = ("frankfurt", "lindau", "munster")[number]
        name = f"{city}/{city}_000000_{number:06}"
        picture(root / f"leftImg8bit/val/{name}_leftImg8bit.png", seen)
        values = np.select([true == 1, true == 2], [7, 33], 4)  # road, bicycle, static
        label_map(root / f"gtFine/val/{name}_gtFine_labelIds.png", values, palette=False)
        label_map(root / f"gtFine/val/{name}_gtFine_instanceIds.png", true, palette=False)
    return root


def msrc(root: Path) -> Path:
    """Write `Images` and `GroundTruth` of MSRC v2, with the colors of building, grass and void."""
    colors = np.array([(0, 0, 0), (128, 0, 0), (0, 128, 0)], dtype=np.uint8)
    for number, (seen, true) in enumerate(zip(SEEN, TRUE, strict=True), start=1):
        picture(root / f"Images/1_{number}_s.bmp", seen)
        (root / "GroundTruth").mkdir(exist_ok=True)
        Image.fromarray(colors[true]).save(root / f"GroundTruth/1_{number}_s_GT.bmp")
    (root / "Test.txt").write_text("1_3_s.bmp\n1_1_s.bmp\n")
    return root


def coco_instances(root: Path) -> Path:
    """Write `val2017` and instances_val2017.json, with a rectangle for each person and bicycle in `TRUE`."""
    images, annotations = [], []
    for number, seen, true in zip((139, 285, 632), SEEN, TRUE, strict=True):
        name = f"{number:012}.jpg"
        picture(root / "val2017" / name, seen)
        images.append({"id": number, "file_name": name, "height": true.shape[0], "width": true.shape[1]})
        for category in {*true.flatten().tolist()} - {0}:
            rows, columns = np.nonzero(true == category)
            left, top, right, bottom = (int(x) for x in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
            annotations.append(
                {"id": len(annotations), "image_id": number, "category_id": category, "iscrowd": 0}
                | {"bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top)}
                | {"segmentation": [[left, top, right, top, right, bottom, left, bottom]]}
            )
    categories = [{"id": n, "name": f"category {n}", "supercategory": "thing"} for n in range(1, 81)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations").mkdir()
    (root / "annotations/instances_val2017.json").write_text(json.dumps(content))
    return root


# Objects of images of 40 x 20 pixels: class, gray value, box, and whether it need not be found.
OBJECTS = [
    [(1, 1, (0, 0, 10, 5), 0), (1, 1, (20, 10, 40, 15), 0), (2, 2, (30, 0, 40, 5), 0)],
    [(2, 2, (0, 5, 20, 20), 0), (1, 1, (30, 0, 40, 10), 1), (1, 1, (30, 15, 40, 20), 0)],
    [],
]


def coco_objects(root: Path) -> Path:
    """Write `val2017` and instances_val2017.json with the `OBJECTS`; a crowd has runs of pixels, column by column."""
    images, annotations = [], []
    for number, objects in zip((139, 285, 632), OBJECTS, strict=True):
        name = f"{number:012}.jpg"
        picture(root / "val2017" / name, _drawn(objects))
        images.append({"id": number, "file_name": name, "height": 20, "width": 40})
        for category, _, (left, top, right, bottom), crowd in objects:
            outline = [[left, top, right, top, right, bottom, left, bottom]]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": category, "iscrowd": crowd}
                | {"bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top)}
                | {"segmentation": {"counts": [20 * 30, 20 * 10], "size": [20, 40]} if crowd else outline}
            )
    categories = [{"id": n, "name": f"kind {n}", "supercategory": "thing"} for n in (2, 1, 3)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations").mkdir()
    (root / "annotations/instances_val2017.json").write_text(json.dumps(content))
    return root


def voc_objects(root: Path) -> Path:
    """Write VOCdevkit/VOC2012 with the `OBJECTS`; the first one has parts, as persons have."""
    names = ["2008_000002", "2008_000003", "2008_000007"]
    (root / "ImageSets/Main").mkdir(parents=True)
    (root / "ImageSets/Main/val.txt").write_text("".join(name + "\n" for name in names))
    (root / "ImageSets/Main/dog_val.txt").write_text("".join(f"{name} -1\n" for name in names))
    (root / "Annotations").mkdir()
    classes = {1: "person", 2: "pottedplant"}
    for name, objects in zip(names, OBJECTS, strict=True):
        picture(root / f"JPEGImages/{name}.jpg", _drawn(objects))
        text = "<annotation><folder>VOC2012</folder><size><width>40</width><height>20</height><depth>3</depth></size>"
        for n, (category, _, box, difficult) in enumerate(objects):
            part = f"<part><name>head</name>{_bndbox((0, 0, 2, 2))}</part>" if n == 0 else ""
            text += f"<object><name>{classes[category]}</name><difficult>{difficult}</difficult>{_bndbox(box)}{part}"
            text += "</object>"
        (root / f"Annotations/{name}.xml").write_text(text + "</annotation>")
    return root


def _bndbox(box: tuple[int, int, int, int]) -> str:
    """Pixels are counted from 1, and the last ones are included."""
    values = dict(zip(("xmax", "xmin", "ymin", "ymax"), (box[2], box[0] + 1, box[1] + 1, box[3]), strict=True))
    return "<bndbox>" + "".join(f"<{name}>{value}.0</{name}>" for name, value in values.items()) + "</bndbox>"


def _drawn(objects: Sequence[tuple[int, int, tuple[int, int, int, int], int]]) -> np.ndarray:
    values = np.zeros((20, 40), dtype=int)
    for _, gray_value, (left, top, right, bottom), _ in objects:
        values[top:bottom, left:right] = gray_value
    return values


def _bordered(true: np.ndarray) -> np.ndarray:
    """Add a void border around the image, as in VOC around objects."""
    values = true.copy()
    values[0] = 255
    return values


CAPTIONS = [  # of one image of Flickr30k Entities; chain 3 has two boxes, 4 is a scene, 0 is not visual
    "[/EN#3/people Two red cups] near [/EN#5/other a blue book] .",
    "[/EN#5/clothing/other The book] lies in [/EN#4/scene a street] with [/EN#0/notvisual each other] .",
]
BOXES = {"3": [(1, 1, 20, 15), (61, 1, 80, 15)], "5": [(21, 31, 60, 60)]}


def flickr30k_entities(root: Path, images: int = 3) -> Path:
    """Write Annotations, Sentences, flickr30k-images and the lists; image n has the gray value n."""
    numbers = [1007129816 + n for n in range(images)]
    for folder in ("Annotations", "Sentences"):
        (root / folder).mkdir(parents=True)
    for split, chosen in {"train": [], "val": numbers[:1], "test": numbers}.items():
        (root / f"{split}.txt").write_text("\n".join(map(str, chosen)))
    for gray_number, number in enumerate(numbers):
        gray(root / f"flickr30k-images/{number}.jpg", gray_number, (80, 60))
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
    """Write the REFER toolbox's folder `data`: two objects per image, the second one twice, not ordered by any id."""
    refs, annotations, pictures = [], [], []
    for n in reversed(range(images)):
        number = 581857 + n
        file = f"COCO_train2014_{number:012}.jpg"
        gray(root / "images/mscoco/images/train2014" / file, n, (80, 60))
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


def refcoco_plus(root: Path) -> Path:
    """Write RefCOCO+."""
    return refcoco(root, "refcoco+")


def refcocog(root: Path) -> Path:
    """Write RefCOCOg with the split `umd`."""
    return refcoco(root, "refcocog", "umd")


def pets(root: Path) -> Path:
    """Write the Oxford-IIIT pets as torchvision expects them: four test images of three classes."""
    names = {"Abyssinian": 1, "american_bulldog": 2, "Bengal": 3}
    lines = {"trainval": ["Abyssinian_1 1 1 1"], "test": ["Bengal_7 3 1 2"]}
    for number, (name, label) in enumerate(names.items()):
        gray(root / f"oxford-iiit-pet/images/{name}_20{number}.jpg", number)
        lines["test"].append(f"{name}_20{number} {label} 1 1")
    gray(root / "oxford-iiit-pet/images/Bengal_7.jpg", 3)
    for split, own in lines.items():
        path = root / f"oxford-iiit-pet/annotations/{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(own) + "\n")
    return root


def animals(root: Path) -> Path:
    """Write images of two classes in folders."""
    return class_folders(root, {"cat": [0, 1], "green_bird": [2]})


def imagenet(root: Path) -> Path:
    """Write images of two classes of ImageNet in folders."""
    return class_folders(root, {"n01440764": [0, 1], "n01443537": [2]})


# For each configuration: the function that writes its data, the number of samples, and the name of a metric.
RUNS: dict[str, tuple[Any, int, str]] = {
    "classification": (animals, 3, "accuracy@1"),
    "imagenet": (imagenet, 3, "mean_class_recall"),
    "clip_benchmark": (pets, 4, "accuracy@1"),
    "voc20_own": (voc, 3, "miou"),
    "voc20_sparc": (voc, 3, "miou_per_image"),
    "voc21_own": (voc, 3, "miou"),
    "context59_own": (context, 3, "miou"),
    "context59_sparc": (context, 3, "miou_per_image"),
    "context60_own": (context, 3, "miou"),
    "coco_stuff_own": (coco_stuff, 3, "pixel_accuracy"),
    "ade20k_own": (ade20k, 3, "miou"),
    "msrc": (msrc, 3, "miou_per_image"),
    "coco_object_own": (coco_instances, 3, "miou"),
    "cityscapes_own": (cityscapes, 3, "miou"),
    "ade20k_training_free": (ade20k, 3, "miou"),
    "cityscapes_training_free": (cityscapes, 3, "miou"),
    "coco_stuff_training_free": (coco_stuff, 3, "miou"),
    "coco_object_training_free": (coco_stuff, 3, "miou"),
    "context59_training_free": (context, 3, "miou"),
    "context60_training_free": (context, 3, "miou"),
    "voc20_training_free": (voc, 3, "miou"),
    "voc21_training_free": (voc, 3, "miou"),
    "coco_detection": (coco_objects, 3, "detection/pooled/map@0.5"),
    "coco_box_classification": (coco_objects, 3, "whole_image/accuracy@5"),
    "voc_detection": (voc_objects, 3, "detection/center_prior/voc_map@0.3"),
    "flickr30k_entities": (flickr30k_entities, 3, "grounding/content/align/r@1_merged"),
    "refcoco": (refcoco, 2, "grounding/content/align/acc@0.5"),
    "refcoco_plus": (refcoco_plus, 2, "grounding/content/align/pointing_game"),
    "refcocog": (refcocog, 2, "grounding/content/center_prior/pointing_game"),
}
