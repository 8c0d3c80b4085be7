"""Measure cached features: how fast they are computed and how fast training reads them, with random weights.

    python benchmarks/features.py [--images 256] [--turns 5] [--workers 0] [--csv FILE]
    python benchmarks/features.py --stored 6000 [--channels 208]

Computing: `CachedFeatures` (read JPEGs, run the towers, write the files) takes turns with the bare towers, which run
forward on the same batches of 64 images with five captions each, ready in memory. The ratio is that of the rates in the
same turn, so that other work on the machine affects both; the figures are medians and quartiles over turns. The CPU
ratio is that of the processor times, without those of processes that read images.

Reading (`--stored`): milliseconds per batch of 64 with one random caption of five, from a file of random features.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import datasets
import numpy as np
import torch
from lightning import Trainer
from PIL import Image
from torch.utils.data import DataLoader

from patchword import AlignmentModule
from patchword.cached import CachedFeatures
from patchword.cached.batch import CachedSample, collate
from patchword.cached.draws import DrawnFeatures
from patchword.cached.store import FeatureStore
from patchword.commands.options import device_name
from patchword.data.batch import Batch
from patchword.data.batch import collate as collate_samples
from patchword.data.draws import Draw
from patchword.encoders import HFText, TimmImage, TwoTowers
from patchword.objectives import CLIP

BATCH, CAPTIONS = 64, 5
WORDS = [
    "a",
    "the",
    "man",
    "woman",
    "dog",
    "child",
    "in",
    "on",
    "with",
    "red",
    "blue",
    "shirt",
    "grass",
    "running",
    "two",
]


def caption(random: Random) -> str:
    """A caption of random words, about as long as those of Flickr8k."""
    return " ".join(random.choices(WORDS, k=min(max(round(random.gauss(12, 4)), 4), 30)))


def write(folder: Path, images: int) -> Path:
    """Write JPEGs of smooth noise with five captions each, and a list of them."""
    random, noise, rows = Random(0), np.random.default_rng(0), []
    for n in range(images):
        coarse = Image.fromarray(noise.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{n}.jpg", quality=85)
        rows.append({"image": f"{n}.jpg", "caption": [caption(random) for _ in range(CAPTIONS)]})
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "list.jsonl"


def model(size: int) -> AlignmentModule:
    """Frozen EfficientNet-Lite0 up to a stride of 16, and a BERT of the size of MiniLM-L6."""
    config = {"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12}
    text = HFText(config=config | {"intermediate_size": 1536}, tokenizer="emoji-scenes", freeze=True)
    image = TimmImage("tf_efficientnet_lite0", level=3, image_size=size, freeze=True)
    return AlignmentModule(TwoTowers(image, text, embed_dim=128), CLIP()).eval()


def bare(made: AlignmentModule, batches: list[Batch]) -> None:
    """Run both towers forward on each batch."""
    with torch.no_grad():
        for batch in batches:
            made.encoder.image(batch.images.to(made.device))
            made.encoder.text(made.encoder.tokenize(batch.captions).to(made.device))


def compute(folder: Path, images: int, turns: int, workers: int, size: int) -> dict[str, str]:
    """The rates of both ways in images per second, and their ratio."""
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    from patchword.data.tables.image_text import ImageText

    path = str(write(folder, images))
    made = model(size)
    trainer = Trainer(logger=False, enable_progress_bar=False, enable_checkpointing=False, devices=1)
    trainer.strategy.connect(made.to(trainer.strategy.root_device))
    batches: list[Batch] = []
    times = []
    for turn in range(turns + 1):
        cache = CachedFeatures(str(folder / f"features {turn}"))
        data = ImageText("json", path, captions="sample", batch_size=BATCH, num_workers=workers, features=cache)
        data.trainer = trainer
        if not batches:
            whole: Any = data.split("train").whole
            batches = [*DataLoader(whole, BATCH, collate_fn=collate_samples)]
        clocks = [now()]
        bare(made, batches)
        clocks.append(now())
        data.train_dataloader()
        clocks.append(now())
        if turn:  # the first turn fills caches
            times.append(np.diff(clocks, axis=0))
    wall, cpu = np.array(times).transpose(2, 1, 0)
    low, ratio, high = np.quantile(wall[0] / wall[1], (0.25, 0.5, 0.75))
    rates = {
        name: images / np.median(of) for name, of in zip(("towers, images/s", "cached, images/s"), wall, strict=True)
    }
    figures = rates | {"ratio": ratio, "low": low, "high": high, "CPU ratio": np.median(cpu[0] / cpu[1])}
    return {name: f"{value:.2f}" for name, value in figures.items()}


def now() -> tuple[float, float]:
    """The wall-clock time and the processor time of this process in seconds."""
    return time.perf_counter(), time.process_time()


class Sampled:
    """Draws one caption of each stored image."""

    whole = None

    def __init__(self, images: int) -> None:
        self.images = images

    def __len__(self) -> int:
        return self.images

    def draw(self, index: int, epoch: int, ids: Any, captions: Any) -> Draw:
        """One random caption."""
        return Draw(index, index, [Random(f"{epoch} {index}").randrange(captions[index])])


def read(folder: Path, images: int, channels: int) -> dict[str, str]:
    """The size of a store of random features, and the time of a batch."""
    store, random = FeatureStore(folder, images), Random(0)
    folder.mkdir(exist_ok=True)
    for part in store.parts:
        samples = []
        for n in store.members(part):
            captions = [caption(random) for _ in range(CAPTIONS)]
            words = [torch.randn(len(one.split()) + 2, 384).half() for one in captions]
            patches = torch.randn(144, channels).half()
            samples.append(CachedSample(n, patches, None, captions, words, [torch.zeros(3, 2).long()] * CAPTIONS))
        store.write(part, samples)
    size = sum(file.stat().st_size for file in folder.iterdir())
    start = time.perf_counter()
    assert not store.remove_broken(store.parts)
    checked = time.perf_counter() - start
    drawn = DrawnFeatures(Sampled(images), store)
    times = []
    for epoch in range(3):
        order = torch.randperm(images).tolist()
        for first in range(0, images - BATCH + 1, BATCH):
            start = time.perf_counter()
            collate([drawn[index, epoch] for index in order[first : first + BATCH]])
            times.append(1e3 * (time.perf_counter() - start))
    low, median, high = np.quantile(times, (0.25, 0.5, 0.75))
    return {
        "images": f"{images}", "channels": f"{channels}", "GB": f"{size / 1e9:.2f}", "check, s": f"{checked:.1f}",
        "batch, ms": f"{median:.2f}", "low": f"{low:.2f}", "high": f"{high:.2f}",
    }  # fmt: skip


def main() -> None:
    """Print the figures, and write them to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256, help="number of images per turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--workers", type=int, default=0, help="number of processes that read images")
    parser.add_argument("--size", type=int, default=192, help="height and width of images in pixels")
    parser.add_argument("--stored", type=int, help="measure reading with this number of images")
    parser.add_argument("--channels", type=int, default=208, help="number of channels of stored patches")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as name:
        if options.stored:
            found = read(Path(name) / "store", options.stored, options.channels)
        else:
            found = compute(Path(name), options.images, options.turns, options.workers, options.size)
            found |= {"workers": f"{options.workers}", "threads": f"{torch.get_num_threads()}"}
    found["device"] = device_name("cuda" if torch.cuda.is_available() else "cpu")
    print(" | ".join(f"{name}: {value}" for name, value in found.items()))
    if options.csv:
        with options.csv.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([[*found], [*found.values()]])


if __name__ == "__main__":
    main()
