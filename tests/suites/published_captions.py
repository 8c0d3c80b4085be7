"""Caption data sets in their published layouts, with tiny images of one colour that says which image it is."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

STEP = 8  # of the red channel from one image to the next: JPEG changes it by less


def draw(path: Path, number: int, size: tuple[int, int] = (20, 16)) -> None:
    """Image `number`, from 0 to 31."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(number, size, "PNG" if path.suffix == ".png" else "JPEG"))


def encoded(number: int, size: tuple[int, int] = (20, 16), kind: str = "JPEG") -> bytes:
    """The file of image `number`."""
    file = io.BytesIO()
    Image.new("RGB", size, (number * STEP, 60, 120)).save(file, kind)
    return file.getvalue()


def write_json(path: Path, content: Any) -> Path:
    """`content` as a JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def caption(image: int, number: int) -> str:
    """The caption `number` of image `image`."""
    return f"A red fish {image}, view {number}."


def karpathy_coco(root: Path, images: int = 10, captions: int = 6) -> Path:
    """`dataset_coco.json` and `val2014/`: a training image, then `images` of the test split, some with a sixth caption.

    Image number i of the test split has the colour i and the captions `caption(i, 0)`, `caption(i, 1)` ...
    """
    entries = [_entry(900, "train2014", "train", 99, 5, "COCO_train2014_{:012d}.jpg")]
    for i in range(images):
        count = captions if i % 2 else captions - 1
        entries.append(_entry(100 + i, "val2014", "test", i, count, "COCO_val2014_{:012d}.jpg"))
        draw(root / "val2014" / f"COCO_val2014_{100 + i:012d}.jpg", i)
    write_json(root / "dataset_coco.json", {"images": entries, "dataset": "coco"})
    return root


def karpathy_flickr30k(root: Path, images: int = 5) -> Path:
    """`dataset_flickr30k.json` (without `filepath` and `cocoid`) and `flickr30k-images/`."""
    entries = [_entry(500, "", "train", 99, 5, "{}.jpg")]
    for i in range(images):
        entries.append(_entry(1000 + i, "", "test", i, 5, "{}.jpg"))
        draw(root / "flickr30k-images" / f"{1000 + i}.jpg", i)
    for entry in entries:
        del entry["filepath"], entry["cocoid"]
    write_json(root / "dataset_flickr30k.json", {"images": entries, "dataset": "flickr30k"})
    return root


def _entry(number: int, folder: str, split: str, image: int, captions: int, name: str) -> dict[str, Any]:
    sentids = list(range(number * 10, number * 10 + captions))
    sentences = [
        {
            "tokens": ["a", "red", "fish", str(image), "view", str(n)],
            "raw": caption(image, n),
            "imgid": number,
            "sentid": s,
        }
        for n, s in enumerate(sentids)
    ]
    return {
        "filepath": folder,
        "sentids": sentids,
        "filename": name.format(number),
        "imgid": number,
        "split": split,
        "sentences": sentences,
        "cocoid": number,
    }


def coco_val2017(root: Path, images: int = 4) -> Path:
    """`annotations/captions_val2017.json`, its annotations in another order than its images, and `val2017/`."""
    entries, annotations = [], []
    for i in range(images):
        name = f"{300 + i:012d}.jpg"
        entries.append(
            {"license": 4, "file_name": name, "coco_url": f"http://images/{name}", "height": 16, "width": 20}
            | {"date_captured": "2013-11-14 17:02:52", "flickr_url": "http://flickr", "id": 300 + i}
        )
        draw(root / "val2017" / name, i)
        annotations += [{"image_id": 300 + i, "id": 10 * i + n, "caption": caption(i, n)} for n in range(5)]
    annotations.sort(key=lambda annotation: -annotation["image_id"])
    info = {"description": "COCO 2017 Dataset", "version": "1.0", "year": 2017}
    content = {"info": info, "licenses": [], "images": entries, "annotations": annotations}
    write_json(root / "annotations" / "captions_val2017.json", content)
    return root


def docci(root: Path, images: int = 4) -> Path:
    """`docci_descriptions.jsonlines` and `images/`."""
    lines = []
    for split, count in (("train", 2), ("test", images), ("qual_dev", 1)):
        for i in range(count):
            name = f"{split}_{i:05d}"
            draw(root / "images" / f"{name}.jpg", i)
            record = {"split": split, "type": split, "description": caption(i, 0), "image_file": f"{name}.jpg"}
            lines.append(json.dumps(record | {"example_id": name}))
    (root / "docci_descriptions.jsonlines").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def urban1k(root: Path, images: int = 4) -> Path:
    """`image/` and `caption/`, from 1 as published; a caption file may have more lines than the one that counts."""
    for i in range(images):
        draw(root / "image" / f"{i + 1}.jpg", i)
        text = root / "caption" / f"{i + 1}.txt"
        text.parent.mkdir(exist_ok=True)
        text.write_text(caption(i, 0) + "\n" + "a second line\n", encoding="utf-8")
    return root
