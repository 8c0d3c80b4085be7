"""Measure how LOUPE's two token-level games agree: the closed form, and the masked game of coalitions encoded again.

    python benchmarks/loupe_games.py --ckpt runs/loupe                         scenes of the embedded test split
    python benchmarks/loupe_games.py --ckpt runs/loupe --flickr8k FOLDER       photographs of Flickr8k's test split

The model is that of a checkpoint, or of the last checkpoint of a run's folder. Its towers can be any that do not attend
to padding; frozen towers must not be trained on cached features only to be measured here. Each image is paired with
its first caption.

Agreement is Spearman's rank correlation within an image, averaged over images. It is computed over the labels I / |R|
of random boxes of the region head's shapes, and over the interactions of patches and words: of all pairs, and of the
patches for each word. Estimates are noisy, so their agreement with a second estimate (half of the samples each) is
reported as well. A label finds objects if it is larger for the patches of an object's box than for a random box of the
same shape. Intervals are 95 % bootstrap intervals over images.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.stats import spearmanr
from torch import Tensor

from patchword import AlignmentModule
from patchword.data.batch import Sample
from patchword.data.scenes import EmojiScenes
from patchword.data.tables.image_text import ImageText
from patchword.encoders.masked import masked_images, masked_texts
from patchword.errors import UserError
from patchword.metrics.bootstrap import ImageTotals
from patchword.ops import cosine, masked_fill_min
from patchword.shapley import (
    boxes,
    masked_pair_interactions,
    masked_region_interactions,
    pair_interactions,
    region_interactions,
)
from patchword.training.last_checkpoint import find
from patchword.training.needs import coverage

SIDES = (0.2, 0.4, 0.6)  # the default of LOUPE
OTHERS = 2  # random boxes that each object's box is compared with


def games(module: AlignmentModule, sample: Sample, options: argparse.Namespace, random: torch.Generator) -> dict:
    """Every figure of one image; NaN if it cannot be computed, such as the correlation of constant labels."""
    encoder, device = module.encoder, module.device
    pixels = sample.image[None].to(device)
    texts, tokens = module.encode_texts(sample.captions[:1])
    images = module.encode_images(pixels)
    words = texts.mask
    if not words.any():
        return {}
    again = masked_images(encoder, pixels, options.batch), masked_texts(encoder, tokens, words, options.batch)
    similarity = cosine(images.patches, texts.tokens.masked_fill(~words[..., None], 0))
    drawn, objects, others = regions_of(sample, images.grid, options.regions, random)
    regions = torch.cat([drawn, objects, others.flatten(0, 1)])[None].to(device)
    size = regions.sum(-1)
    labels = {"similarity": (regions * masked_fill_min(similarity, words[:, None]).amax(-1)[:, None]).sum(-1)}
    found = {}
    for worth in ("deletion", "presence"):
        draws: Any = {"samples": options.contexts // 2, "worth": worth, "generator": random}
        halves = [masked_region_interactions(*again, regions, words, **draws) for _ in range(2)]
        labels[f"masked, {worth}"] = (halves[0] + halves[1]) / 2
        labels[f"closed form, {worth}"] = region_interactions(similarity, regions, words, worth=worth)
        first, second = ((half / size)[0, : len(drawn)] for half in halves)
        found[f"regions, {worth}: masked, two estimates"] = correlation(first, second)
        found[f"masked, {worth}: share above 0"] = float((first + second > 0).double().mean())
    labels = {name: (label / size)[0].cpu() for name, label in labels.items()}
    for worth in ("deletion", "presence"):
        x, y = (labels[f"{game}, {worth}"][: len(drawn)] for game in ("closed form", "masked"))
        found[f"regions, {worth}: closed form and masked"] = correlation(x, y)
    x, y = labels["similarity"][: len(drawn)], labels["masked, deletion"][: len(drawn)]
    found["regions, deletion: similarity and masked"] = correlation(x, y)
    for name, label in labels.items():
        _, own, rest = label.split([len(drawn), len(objects), others.shape[:2].numel()])
        rest = rest.view(others.shape[:2])
        better = (own[:, None] > rest).double() + (own[:, None] == rest).double() / 2
        found[f"object above random box: {name}"] = float(better.mean())  # NaN without objects
    return found | pairs(similarity, words, again, options, random)


def pairs(
    similarity: Tensor, words: Tensor, again: tuple, options: argparse.Namespace, random: Any
) -> dict[str, float]:
    """The agreement of the interactions of patches and words."""
    count = similarity.shape[1]
    halves = [
        masked_pair_interactions(*again, count, words, samples=options.orders // 2, generator=random) for _ in range(2)
    ]
    values = {
        "closed form and masked": (pair_interactions(similarity, words), sum(halves)),
        "cosine and masked": (similarity, sum(halves)),
        "masked, two estimates": (halves[0], halves[1]),
    }
    found = {}
    for name, (x, y) in values.items():
        x, y = x[0][:, words[0]], y[0][:, words[0]]
        found[f"patches and words: {name}"] = correlation(x.flatten(), y.flatten())
        found[f"patches of a word: {name}"] = float(np.mean([correlation(a, b) for a, b in zip(x.T, y.T, strict=True)]))
    return found


def regions_of(
    sample: Sample, grid: tuple[int, int], number: int, random: torch.Generator
) -> tuple[Bool[Tensor, "M P"], Bool[Tensor, "N P"], Bool[Tensor, "N O P"]]:
    """Random boxes, the boxes of objects, and random boxes of the same shape as each of these.

    The box of an object holds the patches of which it covers at least half, or else the one that it covers most. All
    regions have two patches or more.
    """
    heights, widths = (torch.tensor([max(1, round(side * size)) for side in SIDES]) for size in grid)
    patch, height, width = torch.cartesian_prod(torch.arange(grid[0] * grid[1]), heights, widths).T[:, None]
    every = boxes(grid, patch, height, width)[0]
    every = every[every.sum(-1) >= 2]
    drawn = every[torch.randperm(len(every), generator=random)[:number]]
    edges = {phrase.box for phrase in sample.phrases[0] if phrase.box is not None}
    height, width = sample.image.shape[1:]
    objects, others = [], []
    for box in sorted(edges):
        share = coverage(torch.tensor([box]), grid, (height, width))[0].view(grid)
        full = (box[2] - box[0]) * (box[3] - box[1]) * grid[0] * grid[1] / (height * width)  # in patches
        held = share * full >= 0.5
        if held.sum() < 2:
            continue
        rows, columns = held.any(1).sum(), held.any(0).sum()
        tops = torch.randint(grid[0] - int(rows) + 1, (OTHERS,), generator=random)
        lefts = torch.randint(grid[1] - int(columns) + 1, (OTHERS,), generator=random)
        other = torch.zeros(OTHERS, *grid, dtype=torch.bool)
        for n, (top, left) in enumerate(zip(tops, lefts, strict=True)):
            other[n, top : top + rows, left : left + columns] = True
        objects.append(held.flatten())
        others.append(other.flatten(1))
    none = torch.zeros(0, OTHERS, grid[0] * grid[1], dtype=torch.bool)
    return drawn, torch.stack(objects) if objects else none[:, 0], torch.stack(others) if others else none


def correlation(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> float:
    """Spearman's rank correlation; NaN if one of both is constant."""
    if len(x) < 2 or x.min() == x.max() or y.min() == y.max():
        return float("nan")
    return float(spearmanr(x.cpu(), y.cpu()).statistic)


def main() -> None:
    """Print the figures as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", type=Path, required=True, help="a checkpoint or the folder of a run")
    parser.add_argument("--flickr8k", metavar="FOLDER", help="measure photographs of this folder instead of scenes")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--regions", type=int, default=16, help="number of random boxes per image")
    parser.add_argument("--contexts", type=int, default=32, help="contexts of each region, an even number")
    parser.add_argument("--orders", type=int, default=16, help="orders of patches, and of words, an even number")
    parser.add_argument("--batch", type=int, default=64, help="number of inputs that are encoded at once")
    parser.add_argument("--csv", type=Path, help="also write the figures to this file")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    try:
        file = find(options.ckpt, f"--ckpt {options.ckpt}")
    except UserError as error:
        parser.error(str(error))
    module = AlignmentModule.load_from_checkpoint(file, map_location=options.device).eval()
    size = module.encoder.image_size[0]
    data: Any = EmojiScenes("test", options.images, image_size=size)
    if options.flickr8k is not None:
        splits = {"train": "train", "test": "test"}
        data = ImageText(
            "flickr8k", root=options.flickr8k, **splits, phrases="auto", resize_mode="stretch", image_size=size
        ).split("test")
    random, found, start = torch.Generator().manual_seed(0), [], time.perf_counter()
    for number in range(min(options.images, len(data))):
        with torch.no_grad():
            found.append(games(module, data[number], options, random))
    totals = ImageTotals(len(found), torch.arange(len(found)))
    for name in dict.fromkeys(name for one in found for name in one):
        values = torch.tensor([one.get(name, float("nan")) for one in found], dtype=torch.float64)
        totals.add(name, values.nan_to_num(), ~values.isnan())
    low_high = totals.intervals()
    rows = [
        (name, f"{mean:.2f}", *(f"{end:.2f}" for end in low_high.get(name, (float("nan"),) * 2)))
        for name, mean in totals.means().items()
    ]
    print(f"{len(found)} images, {(time.perf_counter() - start) / len(found):.1f} s per image\n")
    print("| figure | mean | 95 % interval |\n| --- | --- | --- |")
    for name, mean, low, high in rows:
        print(f"| {name} | {mean} | {low} to {high} |".replace("-", "−"))
    if options.csv is not None:
        with options.csv.open("w", newline="") as table:
            csv.writer(table).writerows([("figure", "mean", "low", "high"), *rows])


if __name__ == "__main__":
    main()
