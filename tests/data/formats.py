"""Small data sets in the layouts in which they are published: picture number n is n red, its caption is `caption n`."""

import csv
import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def jpeg(number: int, size: tuple[int, int] = (24, 20)) -> bytes:
    """A picture whose red is 10 times its number."""
    file = io.BytesIO()
    Image.new("RGB", size, (10 * number, 90, 200)).save(file, "JPEG", quality=95)
    return file.getvalue()


def number(sample) -> int:
    """The number of the picture that a sample shows."""
    return round(float(sample.image[0].float().mean()) / 10)


def hub_parquet(path: Path, numbers, captions=None, **columns) -> Path:
    """Parquet as `Dataset.push_to_hub` writes it: images as bytes with a name, and the features in the metadata."""
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


def hub_folder(folder: Path) -> Path:
    """A data set as the hub holds it: a card that names the splits' files, and the files."""
    for split, numbers in {"train": range(8), "validation": range(8, 11)}.items():
        hub_parquet(folder / "data" / f"{split}-00000-of-00001.parquet", numbers)
    files = "".join(f"  - split: {split}\n    path: data/{split}-*\n" for split in ("train", "validation"))
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n# Pictures\n")
    return folder


def img2dataset_rows(numbers, missing=()):
    """The table that img2dataset keeps of a shard; the images `missing` could not be downloaded."""
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
    """`--output_format files`: a folder of images, texts and records, and a table."""
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
    """`--output_format parquet`: tables with the images in them."""
    rows = img2dataset_rows(numbers, missing)
    for n, row in zip(numbers, rows, strict=True):
        row["jpg"] = None if n in missing else jpeg(n)
        row["txt"] = None if n in missing else row["caption"]
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "00000.parquet")
    return folder


def webdataset(folder: Path, shards=2, size=4) -> Path:
    """`--output_format webdataset`: tars of images, texts and records."""
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
    """Images beside a metadata.jsonl, one in a folder of its own."""
    (folder / "more").mkdir(parents=True)
    rows = []
    for n in numbers:
        name = f"more/{n}.jpg" if n == 0 else f"{n}.jpg"
        (folder / name).write_bytes(jpeg(n))
        rows.append({"file_name": name, "caption": f"caption {n}", **{k: v(n) for k, v in fields.items()}})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def table(folder: Path, name: str = "list.csv", numbers=range(8)) -> Path:
    """A CSV, or TSV, of image paths and captions, and the images."""
    (folder / "images").mkdir(parents=True)
    with (folder / name).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t" if name.endswith("tsv") else ",")
        writer.writerow(["image", "caption"])
        for n in numbers:
            (folder / "images" / f"{n}.jpg").write_bytes(jpeg(n))
            writer.writerow([f"images/{n}.jpg", f"caption {n}"])
    return folder / name
