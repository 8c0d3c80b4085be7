"""Write scaled copies of photographs with annotations in the layouts in which the data sets are published.

    python benchmarks/natural_layout.py COPY FOLDER

COPY has one or more of three folders, and each becomes a folder of the same name in FOLDER:

- `flickr8k`: `images` and `captions.jsonl.gz`. A line describes an image: `file`, `split` (train, dev, test, none),
  `size`, `original_size`, `captions` with `text` and `phrases` (`span`, `id`, `types`), and `boxes` in pixels of the
  stored image by the id of their phrases; `scene` and `nobox` list the ids without boxes. It becomes Flickr8k with
  Flickr30k Entities as their archives unpack. Boxes are written in pixels of the original image, as published, and the
  images stay small.
- `coco_mini`: `images`, `masks`, `classes.json` (id: name), and `captions.jsonl` with `file`, `mask`, `size`,
  `captions`, `licence`, `flickr_url` and `objects` (`id`, `box`, `polygons`, `crowd`) in pixels of the stored image.
  All images become `val2017`, with captions and instances in `annotations`. The runs of a crowd are the pixels
  of its box whose value in the mask is 255.
- `msrc_v2`: `images`, `masks` with the class of each pixel, and `labels.jsonl` with `file`, `mask` and `split` (train,
  test). It becomes `Images` and `GroundTruth` of the published database, and the lists `Train.txt` and `Test.txt`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image


def flickr8k(copy: Path, folder: Path) -> None:
    """Write the images, the captions and lists of Flickr8k, and `Sentences` and `Annotations` of its images."""
    with gzip.open(copy / "captions.jsonl.gz", "rt", encoding="utf-8") as lines:
        images = [json.loads(line) for line in lines]
    shutil.copytree(copy / "images", folder / "Flicker8k_Dataset", dirs_exist_ok=True)
    captions = [
        f"{image['file']}#{n}\t{caption['text']}\n" for image in images for n, caption in enumerate(image["captions"])
    ]
    (folder / "Flickr8k.token.txt").write_text("".join(captions), encoding="utf-8")
    for split in ("train", "dev", "test"):
        names = [f"{image['file']}\n" for image in images if image["split"] == split]
        (folder / f"Flickr_8k.{split}Images.txt").write_text("".join(names))
    for name in ("Sentences", "Annotations"):
        (folder / name).mkdir(exist_ok=True)
    for image in images:
        number = image["file"].partition("_")[0].removesuffix(".jpg")
        sentences = "".join(f"{marked(caption)}\n" for caption in image["captions"])
        (folder / f"Sentences/{number}.txt").write_text(sentences, encoding="utf-8")
        ElementTree.ElementTree(annotation(image, number)).write(folder / f"Annotations/{number}.xml")


def marked(caption: dict[str, Any]) -> str:
    """Write a caption with its phrases in the markup of Flickr30k Entities: [/EN#1/people Two men] run ."""
    text, pieces, last = caption["text"], [], 0
    for phrase in caption["phrases"]:
        start, end = phrase["span"]
        types = "".join(f"/{name}" for name in phrase["types"])
        pieces += [text[last:start], f"[/EN#{phrase['id']}{types} {text[start:end]}]"]
        last = end
    return "".join([*pieces, text[last:]])


def annotation(image: dict[str, Any], number: str) -> ElementTree.Element:
    """Write the boxes of an image: whole pixels of the original image, counted from 1, right and bottom inclusive."""
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = f"{number}.jpg"
    size = ElementTree.SubElement(root, "size")
    for name, value in zip(("width", "height", "depth"), (*image["original_size"], 3), strict=True):
        ElementTree.SubElement(size, name).text = str(value)
    x, y = (original / stored for original, stored in zip(image["original_size"], image["size"], strict=True))
    for chain, boxes in image["boxes"].items():
        for left, top, right, bottom in boxes:
            item = _object(root, chain)
            corners = ElementTree.SubElement(item, "bndbox")
            values = (round(left * x) + 1, round(top * y) + 1, round(right * x), round(bottom * y))
            for name, value in zip(("xmin", "ymin", "xmax", "ymax"), values, strict=True):
                ElementTree.SubElement(corners, name).text = str(value)
    for chain in [*image["scene"], *image["nobox"]]:
        item = _object(root, chain)
        ElementTree.SubElement(item, "scene").text = str(int(chain in image["scene"]))
        ElementTree.SubElement(item, "nobndbox").text = str(int(chain in image["nobox"]))
    return root


def _object(root: ElementTree.Element, chain: str) -> ElementTree.Element:
    item = ElementTree.SubElement(root, "object")
    ElementTree.SubElement(item, "name").text = chain
    return item


def coco_mini(copy: Path, folder: Path) -> None:
    """Write the images, captions and instances of COCO as one split, `val2017`."""
    shutil.copytree(copy / "images", folder / "val2017", dirs_exist_ok=True)
    records = [json.loads(line) for line in (copy / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    names = {int(number): name for number, name in json.loads((copy / "classes.json").read_text()).items()}
    licences = sorted({record["licence"] for record in records})
    images, captions, instances = [], [], []
    for record in records:
        number = int(Path(record["file"]).stem)
        width, height = record["size"]
        image = {"id": number, "file_name": record["file"], "width": width, "height": height}
        images.append(image | {"license": licences.index(record["licence"]), "flickr_url": record["flickr_url"]})
        captions += [
            {"image_id": number, "id": len(captions) + n, "caption": caption}
            for n, caption in enumerate(record["captions"])
        ]
        with Image.open(copy / "masks" / record["mask"]) as mask:
            values = np.asarray(mask)
        for one in record["objects"]:
            outline = {"image_id": number, "id": len(instances), "category_id": one["id"], "iscrowd": one["crowd"]}
            instances.append(outline | (crowd(one["box"], values == 255) if one["crowd"] else single(one)))
    kinds = [{"id": number, "name": name, "supercategory": supercategory(number)} for number, name in names.items()]
    head = {"images": images, "licenses": [{"id": n, "name": name} for n, name in enumerate(licences)]}
    (folder / "annotations").mkdir(exist_ok=True)
    for name, content in (
        ("captions", head | {"annotations": captions}),
        ("instances", head | {"annotations": instances, "categories": kinds}),
    ):
        (folder / f"annotations/{name}_val2017.json").write_text(json.dumps(content))


def supercategory(number: int) -> str:
    """Return COCO's supercategory of a category; they are ranges of ids."""
    last = {1: "person", 9: "vehicle", 15: "outdoor", 25: "animal", 33: "accessory", 43: "sports", 51: "kitchen"}
    last |= {61: "food", 70: "furniture", 77: "electronic", 83: "appliance", 90: "indoor"}
    return next(name for end, name in last.items() if number <= end)


def single(one: dict[str, Any]) -> dict[str, Any]:
    """Return the box, the area and the polygons of an object."""
    left, top, right, bottom = one["box"]
    corners = [np.reshape(polygon, (-1, 2)) for polygon in one["polygons"]]
    crossed = [x * np.roll(y, -1) - y * np.roll(x, -1) for x, y in (points.T for points in corners)]
    area = sum(abs(float(each.sum())) / 2 for each in crossed)
    return {"bbox": [left, top, right - left, bottom - top], "area": area, "segmentation": one["polygons"]}


def crowd(box: list[float], pixels: np.ndarray) -> dict[str, Any]:
    """Return the box, the area and the runs of a crowd: column by column, the first run outside of the crowd."""
    left, top, right, bottom = box
    inside = np.zeros_like(pixels)
    rows, columns = slice(int(top), math.ceil(bottom)), slice(int(left), math.ceil(right))
    inside[rows, columns] = pixels[rows, columns]
    flat = inside.T.flatten()
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *changes, flat.size]).tolist()
    runs = [0, *runs] if flat[0] else runs
    outline = {"counts": runs, "size": [*inside.shape]}
    return {"bbox": [left, top, right - left, bottom - top], "area": int(inside.sum()), "segmentation": outline}


# The published colors of the classes 0 (void) to 23 of MSRC v2 are these entries of the color map of Pascal VOC.
MSRC_COLORS = [*range(19), *range(21, 26)]


def msrc_v2(copy: Path, folder: Path) -> None:
    """Write the images and the ground truth of MSRC v2 as BMP, and the lists of the splits."""
    for name in ("Images", "GroundTruth"):
        (folder / name).mkdir(exist_ok=True)
    colors = np.array([voc_color(entry) for entry in MSRC_COLORS], dtype=np.uint8)
    records = [json.loads(line) for line in (copy / "labels.jsonl").read_text(encoding="utf-8").splitlines()]
    for record in records:
        name = Path(record["file"]).stem
        with Image.open(copy / "images" / record["file"]) as image, Image.open(copy / "masks" / record["mask"]) as mask:
            image.save(folder / f"Images/{name}.bmp")
            Image.fromarray(colors[np.asarray(mask)]).save(folder / f"GroundTruth/{name}_GT.bmp")
    for split in ("train", "test"):
        names = [f"{Path(record['file']).stem}.bmp\n" for record in records if record["split"] == split]
        (folder / f"{split.title()}.txt").write_text("".join(names))


def voc_color(entry: int) -> list[int]:
    """Return red, green and blue of an entry of the color map of Pascal VOC: its bits, dealt to the three channels."""
    return [sum((entry >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3)) for channel in range(3)]


def main() -> None:
    """Write the layouts of the data sets that the copy has."""
    parser = argparse.ArgumentParser(description="Write scaled copies of photographs in their published layouts.")
    parser.add_argument("copy", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    for name, write in {"flickr8k": flickr8k, "coco_mini": coco_mini, "msrc_v2": msrc_v2}.items():
        if (arguments.copy / name).is_dir():
            (arguments.folder / name).mkdir(parents=True, exist_ok=True)
            write(arguments.copy / name, arguments.folder / name)
            print(f"written: {arguments.folder / name}")


if __name__ == "__main__":
    main()
