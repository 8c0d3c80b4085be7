"""What the two-pass mode (`chunk_size`) costs: a ViT-S/16 at 224 pixels, N chunks of the plain step's batch.

Run as `python benchmarks/two_pass.py`. Memory is the most that one step (forward, backward, AdamW) holds above the
model, its optimiser and the batch; each is measured in a process of its own. Time is the median of steps of both modes
that take turns in one process, per sample: one more forward pass should cost a third.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import multiprocessing

from patchword import AlignmentModule
from patchword.bench.measure import give_back, reset_peak, resident
from patchword.data.batch import Batch, collate
from patchword.data.scenes import EmojiScenes
from patchword.encoders import HFText, TimmImage, TwoTowers
from patchword.named import OURS, build

PLAIN, WHOLE, TWO_PASS = "plain", "plain, large batch", "two-pass"


def setting(objective: str, batch: int, chunk: int | None, device: str) -> tuple[Any, Batch]:
    """A function that makes one step, and what it takes."""
    torch.manual_seed(0)
    image = TimmImage("vit_small_patch16_224")
    config = {"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6}
    text = HFText(config=config | {"intermediate_size": 1536}, tokenizer="emoji-scenes")
    module = AlignmentModule(TwoTowers(image, text), build(OURS.get(objective, objective)), chunk_size=chunk)
    module.to(device).train()
    optimizer = torch.optim.AdamW(module.parameters())
    scenes = EmojiScenes("train", batch, image_size=224, objects=(4, 6), overlap=0.3)
    data = collate([scenes[i] for i in range(batch)]).to(device)

    def step() -> None:
        images, texts, _ = module(data)
        torch.stack(list(module.losses(images, texts).values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, data


def peak(objective: str, batch: int, chunk: int | None, device: str) -> int:
    """Bytes that one step holds at most, after one that made the optimiser's states."""
    give_back()
    step, _ = setting(objective, batch, chunk, device)
    step()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    before = reset_peak() or 0
    step()
    return (resident() or 0) - before


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objectives", nargs="+", default=["CLIP", "SPARC"])
    parser.add_argument("--batch", type=int, default=8, help="of the plain step, and the chunk's")
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    large = options.batch * options.chunks
    print(f"ViT-S/16 at 224 with a BERT of 6 layers, float32, on {options.device}")
    for objective in options.objectives:
        modes = {PLAIN: (options.batch, None), TWO_PASS: (large, options.batch), WHOLE: (large, None)}
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            peaks = {name: pool.apply(peak, (objective, *of, options.device)) for name, of in modes.items()}
        steps = {name: setting(objective, *of, options.device)[0] for name, of in modes.items() if name != WHOLE}
        times: dict[str, list[float]] = {name: [] for name in steps}
        for repeat in range(options.repeats + 1):
            for name, step in steps.items():
                start = time.perf_counter()
                for _ in range(options.chunks if name == PLAIN else 1):
                    step()
                if options.device == "cuda":
                    torch.cuda.synchronize()
                if repeat:  # the first steps allocate
                    times[name].append(time.perf_counter() - start)
        medians = {name: statistics.median(values) for name, values in times.items()}
        print(f"{objective}: {options.chunks} chunks of {options.batch}")
        for name, (batch, _) in modes.items():
            shown = f"{1e3 * medians[name] / large:8.1f} ms per sample" if name in medians else ""
            print(f"  {name:<18} batch {batch:<5} {peaks[name] / 2**20:8.0f} MiB {shown}")
        print(
            f"  two-pass / plain: memory {peaks[TWO_PASS] / peaks[PLAIN]:.2f}, "
            f"time per sample {medians[TWO_PASS] / medians[PLAIN]:.2f}"
        )


if __name__ == "__main__":
    main()
