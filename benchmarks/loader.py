"""Measure how fast patchword's loaders and a plain Pillow loop read the same JPEGs.

The loaders take turns, so that other programs on the machine slow down all of them. Each loader is compared with the
plain loop of the same turn, and the table contains medians over turns. Images per second refer to wall-clock time.
Images per CPU second refer to the total processor time of the reading processes, which depends less on other programs.
The plain loop decodes, crops and resizes with Pillow in the same number of processes, and does not form batches.

    python benchmarks/loader.py [--images 1024] [--turns 5] [--workers 1 2] [--size 500 375] [--csv FILE]
"""

from __future__ import annotations

import argparse
import csv
import gc
import io
import json
import logging
import multiprocessing
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from patchword.data.pixels import Preprocessing, decode
from patchword.data.tables.image_text import ImageText

BATCH, CAPTIONS = 64, 5
SIZE = (500, 375)  # width and height of the JPEGs
COLUMNS = ["processes", "way", "images/s", "of bare Pillow", "images/CPU s", "of bare Pillow"]
PICTURES: list[bytes] = []  # forked processes inherit the pictures

Turn = Callable[[], tuple[float, float]]  # wall-clock seconds, CPU seconds


def photograph(number: int, size: tuple[int, int] = SIZE, noise: int = 24) -> bytes:
    """Return a JPEG with smooth shapes and noise."""
    random = np.random.default_rng(number)
    coarse = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), dtype=np.int16)
    noisy = (smooth + random.integers(-noise, noise + 1, smooth.shape, dtype=np.int16)).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=85)
    return file.getvalue()


def write(folder: Path, shards: int = 8) -> None:
    """Write the pictures as parquet files, as tar files and as an image folder with five captions per image."""
    share = len(PICTURES) // shards
    for shard in range(shards):
        pictures = PICTURES[shard * share : (shard + 1) * share]
        table = pa.table({"image": pictures, "caption": [f"caption {i}" for i in range(share)]})
        pq.write_table(table, folder / f"{shard:05}.parquet", row_group_size=128)
        with tarfile.open(folder / f"{shard:05}.tar", "w") as tar:
            for i, picture in enumerate(pictures):
                for name, content in ((f"{i:09}.jpg", picture), (f"{i:09}.txt", b"caption")):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    (folder / "images").mkdir()
    lines = []
    for i, picture in enumerate(PICTURES):
        (folder / "images" / f"{i}.jpg").write_bytes(picture)
        lines.append({"file_name": f"{i}.jpg", "caption": [f"caption {n}" for n in range(CAPTIONS)]})
    (folder / "images" / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def bare(share: slice) -> None:
    """Decode, crop and resize pictures."""
    for picture in PICTURES[share]:
        with Image.open(io.BytesIO(picture)) as image:
            whole = image.convert("RGB")
            side = min(whole.size)
            left, top = (whole.width - side) / 2, (whole.height - side) / 2
            box = (left, top, left + side, top + side)
            np.asarray(whole.resize((224, 224), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0))


def difference(pictures: list[bytes]) -> tuple[float, int]:
    """Return the mean and the largest difference of the values that scaled decoding makes, of 255."""
    frame, found = Preprocessing("crop"), []
    for picture in pictures:
        whole = decode(io.BytesIO(picture))
        view = frame.view(*whole.size, 224)
        scaled = decode(io.BytesIO(picture), spare=lambda *size: 1 / max(frame.view(*size, 224).scale))
        found.append((scaled.seen(view).int() - whole.seen(view).int()).abs())
    every = torch.stack(found)
    return float(every.float().mean()), int(every.max())


def cpu_seconds() -> float:
    """Return the CPU seconds that the running child processes have used."""
    ticks = 0
    for process in multiprocessing.active_children():
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Return the wall-clock and CPU seconds of a call of `run`."""
    cpu, clock = cpu_seconds(), time.perf_counter()
    run()
    return time.perf_counter() - clock, cpu_seconds() - cpu


def epoch(loader: Iterable[object]) -> Turn:
    """Return a turn that reads one epoch. Workers do not prefetch before it starts."""
    return lambda: timed(lambda: sum(1 for _ in loader))


def stretch(loader: Iterable[object], workers: int) -> Turn:
    """Return a turn that reads as many images as an epoch has from an endless stream.

    The turn first takes the prefetched batches without timing them, and waits at the end until workers have prefetched
    again.
    """
    ahead, steps = 2 * workers, len(PICTURES) // BATCH

    def turn() -> tuple[float, float]:
        cpu, batches = cpu_seconds(), iter(loader)
        sum(1 for _ in islice(batches, ahead))
        clock, _ = timed(lambda: sum(1 for _ in islice(batches, steps)))
        time.sleep(2.0)
        return clock, (cpu_seconds() - cpu) * steps / (steps + ahead)

    return turn


def ways(folder: Path, workers: int) -> dict[str, Turn]:
    """Return the turns of all loaders by name."""
    tars, tables = str(folder / "*.tar"), str(folder / "*.parquet")
    steps = len(PICTURES) // BATCH + 2 * workers
    framed = {"image_size": 224, "resize_mode": "crop", "batch_size": BATCH, "num_workers": workers}
    streamed = {**framed, "streaming": True, "steps_per_epoch": steps, "shuffle_buffer": 256}
    modules = {
        "parquet": ImageText("parquet", tables, **framed),
        "parquet, streaming": ImageText("parquet", tables, **streamed),
        "WebDataset": ImageText("webdataset", tars, caption="txt", **framed),
        "WebDataset, streaming": ImageText("webdataset", tars, caption="txt", **streamed),
        "image folder, 5 captions": ImageText("imagefolder", str(folder / "images"), captions="all", **framed),
        "parquet, scaled decoding": ImageText("parquet", tables, scaled_decoding=True, **framed),
    }
    found = {}
    for name, module in modules.items():
        module.setup("fit")
        loader = module.train_dataloader()
        found[name] = stretch(loader, workers) if "streaming" in name else epoch(loader)
    return found


def measure(folder: Path, workers: int, turns: int) -> list[list[str]]:
    """Return the rows of the table, one per loader."""
    shares = [slice(i, None, workers) for i in range(workers)]
    with multiprocessing.Pool(workers) as pool:
        every: dict[str, Turn] = {"bare Pillow": lambda: timed(lambda: pool.map(bare, shares, chunksize=1))}
        every |= ways(folder, workers)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in every}
        for turn in range(turns + 1):
            for name, run in every.items():
                seconds = run()
                if turn:  # the first turn starts processes and fills caches
                    times[name].append(seconds)
    rows = []
    plain = np.array(times["bare Pillow"])
    for name, of in times.items():
        rates = np.median(len(PICTURES) / np.array(of), axis=0)
        shares_of = np.median(plain / np.array(of), axis=0)
        compared = zip(rates, shares_of, strict=True)
        rows.append([str(workers), name, *(cell for a, b in compared for cell in (f"{a:.0f}", f"{b:.2f}"))])
        print(" | ".join(rows[-1]), flush=True)
    return rows


def main() -> None:
    """Print the table, and write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1024, help="number of images, a multiple of 512")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--size", type=int, nargs=2, default=SIZE, help="width and height; COCO has 640 x 480")
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    if arguments.images < 1 or arguments.images % 512:
        parser.error("--images must be a multiple of 512")
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    import datasets

    datasets.disable_progress_bars()
    width, height = arguments.size
    PICTURES.extend(photograph(i, (width, height)) for i in range(arguments.images))
    size = sum(map(len, PICTURES)) / len(PICTURES) / 1024
    print(f"{arguments.images} JPEGs of {width} x {height} pixels, {size:.0f} KB each, to 224 x 224")
    for noise in (0, 24):
        mean, most = difference([photograph(i, (width, height), noise) for i in range(32)])
        print(f"scaled decoding changes values by {mean:.2f} on average and at most {most}, with noise of {noise}")
    print(" | ".join(COLUMNS))
    rows = []
    with tempfile.TemporaryDirectory() as name:
        datasets.config.HF_DATASETS_CACHE = Path(name) / "cache"
        write(Path(name))
        for workers in arguments.workers:
            rows += measure(Path(name), workers, arguments.turns)
            gc.collect()
    if arguments.csv:
        with arguments.csv.open("w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *rows])


if __name__ == "__main__":
    main()
