"""Measure retrieval with a token-level score (FILIP's) as `patchword test` computes it, beside bare late interaction.

    python benchmarks/retrieval.py [--images 50 100 200] [--turns 5] [--csv FILE]

Every image has five captions of 8 to L tokens. All ways use the same float32 features and return both scores of all
pairs, by which images rank captions and captions rank images:

    bare        blocks of 4 x 64 pairs: a matrix product of normalized features, both maxima and both means
    kernel      one call of `patchword.late_interaction`, for cosines
    retrieval   `Retrieval.compute` with the objective FILIP: scores, ranks and recalls

The ways take turns in one process, so that other work on the machine affects all of them. The seconds are processor
times. The ratio is that to the bare time of the same turn; both are medians over turns. The peak is the memory that a
call needs besides the stored features (`features`), measured in a new process for each number of images.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor

from patchword.bench.measure import resident
from patchword.features import Images, Texts
from patchword.late_interaction import late_interaction
from patchword.metrics.retrieval import Retrieval, own_retrieval
from patchword.objectives import FILIP
from patchword.ops import normalize

BATCH, CAPTIONS, SHORTEST = 64, 5, 8
WAYS = ("bare", "kernel", "retrieval")
Sizes = tuple[int, int, int]  # rows of the patch grid, L, D


def stored(images: int, sizes: Sizes) -> Retrieval:
    """A `Retrieval` that has stored the features of random images and captions, batch by batch."""
    side, length, width = sizes
    retrieval = own_retrieval(FILIP())
    retrieval.compute_with_cache = False
    torch.manual_seed(0)
    for first in range(0, images, BATCH):
        ids = torch.arange(first, min(first + BATCH, images))
        own = torch.arange(len(ids)).repeat_interleave(CAPTIONS)
        patches, tokens = torch.randn(len(ids), side**2, width), torch.randn(len(own), length, width)
        mask = torch.arange(length) < torch.randint(min(SHORTEST, length), length + 1, (len(own), 1))
        texts = Texts(tokens[:, 0], tokens, mask)
        retrieval.update(Images(patches[:, 0], patches, (side, side)), texts, own, ids)
    return retrieval


def bare(patches: Tensor, tokens: Tensor, mask: Tensor, height: int = 4, width: int = 64) -> tuple[Tensor, Tensor]:
    """Late interaction of normalized features by the formula, for blocks of `height` images and `width` texts."""
    lengths = mask.sum(-1)
    to_texts, to_images = torch.empty(2, len(patches), len(tokens))
    for i in (slice(start, start + height) for start in range(0, len(patches), height)):
        for t in (slice(start, start + width) for start in range(0, len(tokens), width)):
            block, own = patches[i], mask[t]
            similarity = (block.flatten(0, 1) @ tokens[t].flatten(0, 1).T).view(*block.shape[:2], *own.shape)
            to_images[i, t] = (similarity.amax(1) * own).sum(-1) / lengths[t]
            to_texts[i, t] = similarity.masked_fill_(~own, -torch.inf).amax(-1).mean(1)
    return to_texts, to_images


def calls(images: int, sizes: Sizes) -> dict[str, Callable[[], object]]:
    """The ways by name."""
    retrieval = stored(images, sizes)
    mask = torch.arange(sizes[1]) < torch.cat(retrieval.lengths)[:, None]
    tokens = torch.zeros(*mask.shape, sizes[2])
    tokens[mask] = normalize(torch.cat(retrieval.text_tokens))
    patches = normalize(torch.cat(retrieval.patches))
    return {
        "bare": lambda: bare(patches, tokens, mask),
        "kernel": lambda: late_interaction(patches, tokens, mask, "cosine"),
        "retrieval": retrieval.compute,
    }


@torch.inference_mode()
def seconds(images: int, sizes: Sizes, turns: int) -> dict[str, list[float]]:
    """The processor times of each way, one per turn."""
    every = calls(images, sizes)
    times: dict[str, list[float]] = {name: [] for name in every}
    for turn in range(turns + 1):
        for name, call in every.items():
            start = time.process_time()
            call()
            if turn:  # the first turn allocates memory
                times[name].append(time.process_time() - start)
    return times


@torch.inference_mode()
def megabytes(images: int, sizes: Sizes) -> tuple[float, float]:
    """The size of the stored features, and the memory that `Retrieval.compute` needs besides."""
    stored(BATCH, sizes).compute()  # loads libraries
    retrieval = stored(images, sizes)
    size = sum(x.nbytes for x in [*retrieval.patches, *retrieval.text_tokens])
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = resident("VmRSS") or 0
    retrieval.compute()
    return size / 1e6, ((resident("VmHWM") or 0) - before) / 1e6


def measure(images: int, sizes: Sizes, turns: int) -> dict[str, str]:
    """The row of a number of images."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        features, peak = pool.apply(megabytes, (images, sizes))
    times = seconds(images, sizes, turns)
    row = {"images": f"{images}", "captions": f"{CAPTIONS * images}", "bare, s": f"{np.median(times['bare']):.2f}"}
    for name in WAYS[1:]:
        low, ratio, high = np.quantile(np.divide(times[name], times["bare"]), (0.25, 0.5, 0.75))
        row[f"{name}, ratio"] = f"{ratio:.2f} ({low:.2f} to {high:.2f})"
    return row | {"features, MB": f"{features:.0f}", "peak, MB": f"{peak:.0f}"}


def main() -> None:
    """Print the table, and write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[50, 100, 200])
    parser.add_argument("--side", type=int, default=14, help="rows and columns of patches")
    parser.add_argument("--length", type=int, default=32, help="L, the largest number of tokens of a caption")
    parser.add_argument("--width", type=int, default=256, help="D, the dimension of the shared space")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    sizes = (options.side, options.length, options.width)
    if min(*sizes, *options.images, options.turns) < 1:
        parser.error("all numbers must be 1 or more")
    print(
        f"{options.side**2} patches, up to {options.length} tokens, {options.width} dimensions, {options.turns} turns"
    )
    rows = []
    for images in options.images:
        rows.append(measure(images, sizes, options.turns))
        if len(rows) == 1:
            print(" | ".join(rows[0]))
        print(" | ".join(rows[-1].values()), flush=True)
    if options.csv:
        with options.csv.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([[*rows[0]], *(row.values() for row in rows)])


if __name__ == "__main__":
    main()
