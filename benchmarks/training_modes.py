"""Compare the cost of the two-pass mode, gradient checkpointing and bfloat16 with that of the plain training step.

Run it as `python benchmarks/training_modes.py`. The towers are a ViT-S/16 at 224 pixels and a BERT of 6 layers. Memory
is the peak of one step (forward, backward, AdamW) without model, optimizer and batch, measured in a separate process
for each mode. Time per sample is the median over steps; all modes take turns in one process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import multiprocessing

from patchword import AlignmentModule
from patchword.bench.measure import give_back, reset_peak, resident
from patchword.commands.objective_names import OURS, build
from patchword.data.batch import collate
from patchword.data.scenes import EmojiScenes
from patchword.encoders import HFText, TimmImage, TwoTowers
from patchword.encoders.checkpointing import checkpoint_gradients


@dataclass(frozen=True)
class Mode:
    """A training mode: the batch size, the chunk size, gradient checkpointing and precision."""

    name: str
    batch: int
    chunk_size: int | None = None
    gradient_checkpointing: bool = False
    bf16: bool = False

    def step(self, objective: str, device: str) -> Callable[[], None]:
        """A function that runs one training step. All steps use the same batch."""
        torch.manual_seed(0)
        image = TimmImage("vit_small_patch16_224")
        config = {"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6}
        text = HFText(config=config | {"intermediate_size": 1536}, tokenizer="emoji-scenes")
        encoder = TwoTowers(image, text)
        module = AlignmentModule(encoder, build(OURS.get(objective, objective)), chunk_size=self.chunk_size)
        if self.gradient_checkpointing:
            checkpoint_gradients(encoder)
        module.to(device).train()
        optimizer = torch.optim.AdamW(module.parameters())
        scenes = EmojiScenes("train", self.batch, image_size=224, objects=(4, 6), overlap=0.3)
        data = collate([scenes[i] for i in range(self.batch)]).to(device)

        def step() -> None:
            with torch.autocast(device, torch.bfloat16, enabled=self.bf16):
                images, texts, _ = module(data)
                loss = torch.stack(list(module.losses(images, texts).values())).sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step


def peak(mode: Mode, objective: str, device: str) -> int:
    """The peak memory of one step in bytes, in a new process. A step before it creates the states of the optimizer."""
    give_back()
    step = mode.step(objective, device)
    step()
    return peak_of(step, device)


def peak_of(step: Callable[[], None], device: str) -> int:
    """The bytes by which the peak memory of a step exceeds the memory in use before it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    before = reset_peak() or 0
    step()
    return (resident() or 0) - before


def main() -> None:
    """Measure all modes, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objectives", nargs="+", default=["CLIP", "SPARC"])
    parser.add_argument("--batch", type=int, default=8, help="batch size of the plain step, and size of a chunk")
    parser.add_argument("--chunks", type=int, default=8, help="number of chunks of the large batch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    large = options.batch * options.chunks
    modes = [
        Mode("plain", options.batch),
        Mode("two-pass", large, chunk_size=options.batch),
        Mode("plain, large batch", large),
        Mode("gradient checkpointing", options.batch, gradient_checkpointing=True),
        Mode("bf16", options.batch, bf16=True),
    ]
    print(f"ViT-S/16 at 224, BERT of 6 layers, {options.device}, torch {torch.__version__}")
    for objective in options.objectives:
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            peaks = [pool.apply(peak, (mode, objective, options.device)) for mode in modes]
        times: list[list[float]] = [[] for _ in modes]
        steps = [mode.step(objective, options.device) for mode in modes]
        for repeat in range(options.repeats + 1):
            for mode, step, seconds in zip(modes, steps, times, strict=True):
                start = time.perf_counter()
                step()
                if options.device == "cuda":
                    torch.cuda.synchronize()
                if repeat:  # the first steps allocate memory
                    seconds.append((time.perf_counter() - start) / mode.batch)
        print(f"\n{objective:<24}{'batch':>6}{'MiB':>8}{'ratio':>7}{'ms per sample':>15}{'ratio':>7}")
        medians = [statistics.median(seconds) for seconds in times]
        for mode, memory, seconds in zip(modes, peaks, medians, strict=True):
            print(
                f"{mode.name:<24}{mode.batch:>6}{memory / 2**20:>8.0f}{memory / peaks[0]:>7.2f}"
                f"{1e3 * seconds:>15.1f}{seconds / medians[0]:>7.2f}"
            )


if __name__ == "__main__":
    main()
