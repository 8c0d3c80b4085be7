"""What SPARC's token-level loss adds to a training step: a ViT-S/16 at 224 pixels, batch 16, with CLIP beside it.

Run as `python benchmarks/training_step.py`. Steps of both objectives alternate in one run, on the same batch, so that
what else the machine does hits both alike; the medians and their ratio are printed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from patchword import Objective
from patchword.data.batch import collate
from patchword.data.scenes import EmojiScenes
from patchword.encoders import HFText, TimmImage, TwoTowers
from patchword.objectives import CLIP, SPARC


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.manual_seed(0)
    image = TimmImage("vit_small_patch16_224")
    config = {"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6}
    text = HFText(config=config | {"intermediate_size": 1536}, tokenizer="emoji-scenes")
    encoder = TwoTowers(image, text).to(options.device)
    optimizer = torch.optim.AdamW(encoder.parameters())
    scenes = EmojiScenes("train", options.batch, image_size=224, objects=(4, 6), overlap=0.3)
    batch = collate([scenes[i] for i in range(options.batch)]).to(options.device)
    tokens = encoder.tokenize(batch.captions).to(options.device)

    def wait() -> None:
        if options.device == "cuda":
            torch.cuda.synchronize()

    def step(objective: Objective) -> tuple[float, float]:
        """Seconds of a whole step, and of the objective's forward within it."""
        wait()
        start = time.perf_counter()
        images, texts = encoder.encode_images(batch.images), encoder.encode_texts(tokens)
        wait()
        encoded = time.perf_counter()
        loss = torch.stack(list(objective(images, texts).values())).sum()
        wait()
        scored = time.perf_counter()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        wait()
        return time.perf_counter() - start, scored - encoded

    objectives = {"CLIP": CLIP().to(options.device), "SPARC": SPARC().to(options.device)}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in objectives}
    for repeat in range(options.repeats + 1):
        for name, objective in objectives.items():
            found = step(objective)
            if repeat:  # the first steps allocate
                times[name].append(found)
    print(f"ViT-S/16 at 224, batch {options.batch}, {tokens.ids.shape[1]} tokens, on {options.device}:")
    medians = {}
    for name, found in times.items():
        whole, forward = (statistics.median(values) for values in zip(*found, strict=True))
        medians[name] = whole
        print(f"  {name:<6} step {1e3 * whole:8.1f} ms   objective's forward {1e3 * forward:6.2f} ms")
    differences = [s[0] - c[0] for c, s in zip(times["CLIP"], times["SPARC"], strict=True)]
    print(
        f"  SPARC's token-level loss adds {100 * statistics.median(differences) / medians['CLIP']:+.1f} % to the step"
    )


if __name__ == "__main__":
    main()
