"""Small data sets in published layouts; picture n has a red value of 10 * n and the caption `caption n`."""

import csv
import io
import json
import shutil
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def jpeg(number: int, size: tuple[int, int] = (24, 20)) -> bytes:
    """Encode a picture whose red value is 10 times its number."""
    file = io.BytesIO()
    Image.new("RGB", size, (10 * number, 90, 200)).save(file, "JPEG", quality=95)
    return file.getvalue()


def number(sample) -> int:
    """Return the number of the picture that a sample shows."""
    return round(float(sample.image[0].float().mean()) / 10)


def hub_parquet(path: Path, numbers, captions=None, **columns) -> Path:
    """Write parquet like `Dataset.push_to_hub`: images as bytes with a name, and features in the metadata."""
    numbers = [*numbers]
    captions = [f"caption {n}" for n in numbers] if captions is None else captions
    table = pa.table(
        {
            "image": [{"bytes": jpeg(n), "path": f"{n}.jpg"} for n in numbers],
            "caption": captions,
            **columns,
        }
    )
    features = {"image": {"_type": "Image"}, "caption": {"dtype": "string", "_type": "Value"}}
    if not columns and isinstance(captions[0], str):
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def categories(path: Path) -> Path:
    """Write parquet with dictionary columns, as pandas writes categories."""
    columns = {"image": [jpeg(n) for n in range(8)], "caption": [f"caption {n}" for n in range(8)]}
    pq.write_table(pa.table({name: pa.array(values).dictionary_encode() for name, values in columns.items()}), path)
    return path


def hub_folder(folder: Path) -> Path:
    """Write a data set in the hub's layout: a card that names the splits' files, and the files."""
    for split, numbers in {"train": range(8), "validation": range(8, 11)}.items():
        hub_parquet(folder / "data" / f"{split}-00000-of-00001.parquet", numbers)
    files = "".join(f"  - split: {split}\n    path: data/{split}-*\n" for split in ("train", "validation"))
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n# Pictures\n")
    return folder


def img2dataset_rows(numbers, missing=()):
    """Return img2dataset's table of a shard; the images in `missing` could not be downloaded."""
    return [
        {
            "url": f"https://example.org/{n}.jpg",
            "caption": f"caption {n}",
            "key": f"{0:05}{n:04}",
            "status": "failed_to_download" if n in missing else "success",
            "error_message": "HTTP Error 404: Not Found" if n in missing else None,
            "width": None if n in missing else 24,
            "height": None if n in missing else 20,
            "sha256": None,
        }
        for n in numbers
    ]


def img2dataset_files(folder: Path, numbers=range(8), missing=()) -> Path:
    """Write img2dataset's `--output_format files`: a folder of images, texts and records, and a table."""
    (folder / "00000").mkdir(parents=True)
    rows = img2dataset_rows(numbers, missing)
    for n, row in zip(numbers, rows, strict=True):
        if n not in missing:
            (folder / "00000" / f"{row['key']}.jpg").write_bytes(jpeg(n))
            (folder / "00000" / f"{row['key']}.txt").write_text(row["caption"])
            (folder / "00000" / f"{row['key']}.json").write_text(json.dumps(row, indent=4))
    pq.write_table(pa.Table.from_pylist(rows), folder / "00000.parquet")
    return folder


def img2dataset_parquet(folder: Path, numbers=range(8), missing=()) -> Path:
    """Write img2dataset's `--output_format parquet`: tables that contain the images."""
    rows = img2dataset_rows(numbers, missing)
    for n, row in zip(numbers, rows, strict=True):
        row["jpg"] = None if n in missing else jpeg(n)
        row["txt"] = None if n in missing else row["caption"]
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "00000.parquet")
    return folder


def webdataset(folder: Path, shards=2, size=4) -> Path:
    """Write img2dataset's `--output_format webdataset`: tars of images, texts and records."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05}.tar", "w") as tar:
            for n in range(shard * size, (shard + 1) * size):
                key, record = f"{shard:05}{n:04}", {"caption": f"caption {n}", "url": "https://example.org"}
                members = {"jpg": jpeg(n), "txt": f"caption {n}".encode(), "json": json.dumps(record).encode()}
                for extension, content in members.items():
                    member = tarfile.TarInfo(f"{key}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return folder


def imagefolder(folder: Path, numbers=range(8), **fields) -> Path:
    """Write images and a metadata.jsonl; one image is in a subfolder."""
    (folder / "more").mkdir(parents=True)
    rows = []
    for n in numbers:
        name = f"more/{n}.jpg" if n == 0 else f"{n}.jpg"
        (folder / name).write_bytes(jpeg(n))
        rows.append({"file_name": name, "caption": f"caption {n}", **{k: v(n) for k, v in fields.items()}})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def table(folder: Path, name: str = "list.csv", numbers=range(8)) -> Path:
    """Write a CSV or TSV of image paths and captions, and the images."""
    (folder / "images").mkdir(parents=True)
    with (folder / name).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t" if name.endswith("tsv") else ",")
        writer.writerow(["image", "caption"])
        for n in numbers:
            (folder / "images" / f"{n}.jpg").write_bytes(jpeg(n))
            writer.writerow([f"images/{n}.jpg", f"caption {n}"])
    return folder / name


def parquet_page() -> None:
    """Write the files of docs/data.md and docs/data/parquet.md in the current folder."""
    for split in ("train", "val"):
        hub_parquet(Path(f"pictures/{split}-00000-of-00001.parquet"), range(8))


def imagefolder_page() -> None:
    """Write the files of docs/data/imagefolder.md."""
    boxes = [{"start": 0, "end": 7, "box": [2, 3, 20, 18]}]
    for split in ("train", "val"):
        imagefolder(Path("pictures") / split, phrases=lambda n: boxes, negatives=lambda n: ["captions"])


def lists_page() -> None:
    """Write the files of docs/data/lists.md."""
    table(Path("pictures"), "train.csv")
    shutil.copy("pictures/train.csv", "pictures/val.csv")
    img2dataset_files(Path("cc3m"), missing=(3,))


def json_lists_page() -> None:
    """Write the files of docs/data/json_lists.md: COCO's annotations, Karpathy's file, conversations, and images."""
    Path("annotations").mkdir()
    for split in ("train", "val"):
        table(Path("coco") / f"{split}2014")
        (Path("coco") / f"{split}2014/images").rename(f"{split}2017")
        shutil.copytree(f"{split}2017", f"coco/{split}2014", dirs_exist_ok=True)
        images = [{"id": n, "file_name": f"{n}.jpg"} for n in range(8)]
        annotations = [{"image_id": n, "caption": f"caption {n}"} for n in range(8)]
        content = json.dumps({"images": images, "annotations": annotations})
        Path(f"annotations/captions_{split}2017.json").write_text(content)
    records = [
        {
            "filepath": f"{'val' if split == 'val' else 'train'}2014",
            "filename": f"{n}.jpg",
            "split": split,
            "sentences": [{"raw": f"caption {n}"}, {"raw": f"again {n}"}],
        }
        for split in ("train", "restval", "val", "test")
        for n in range(4)
    ]
    Path("dataset_coco.json").write_text(json.dumps({"images": records, "dataset": "coco"}))
    shutil.copytree("train2017", "images")
    said = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a caption"}]
    conversations = [{"id": str(n), "image": f"{n}.jpg", "conversations": said} for n in range(8)]
    Path("blip_laion_cc_sbu_558k.json").write_text(json.dumps(conversations))
    webdataset(Path("cc3m"))


def published_page() -> None:
    """Write the files of docs/data/published.md: Flickr8k with Flickr30k Entities."""
    root = Path("flickr8k")
    table(root)
    (root / "images").rename(root / "Flicker8k_Dataset")
    names = [f"{n}.jpg" for n in range(8)]
    for split in ("train", "dev", "test"):
        (root / f"Flickr_8k.{split}Images.txt").write_text("\n".join(names))
    captions = [f"{name}#{n}\tcaption {n}\n" for name in names for n in range(5)]
    (root / "Flickr8k.token.txt").write_text("".join(captions))
    for folder in ("Sentences", "Annotations"):
        (root / folder).mkdir()
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    size = "<size><width>20</width><height>10</height></size>"
    for n in range(8):
        (root / f"Sentences/{n}.txt").write_text("".join(f"[/EN#1/other caption] {i}\n" for i in range(5)))
        boxes = f"<annotation>{size}<object><name>1</name>{box}</object></annotation>"
        (root / f"Annotations/{n}.xml").write_text(boxes)


# For each page in docs/data: the function that writes its files in the current folder.
PAGES = {
    "data": parquet_page,
    "hub": lambda: hub_folder(Path("my_name/pictures")),
    "parquet": parquet_page,
    "imagefolder": imagefolder_page,
    "webdataset": lambda: webdataset(Path("cc3m"), shards=3),
    "lists": lists_page,
    "json_lists": json_lists_page,
    "published": published_page,
}
