"""Measure the cost of a training step with each objective: tokenizer, towers, loss, backward pass, optimizer.

    python benchmarks/training_step.py                  ViT-S/16 at 224 pixels with a BERT of 6 layers, batch 16
    python benchmarks/training_step.py --towers scenes  the towers and the batch of configs/clip.yaml
    python benchmarks/training_step.py --towers natural  the towers of configs/natural/flickr8k.yaml, but trained

All objectives take turns in one process, on the same batch, so that other work on the machine affects all of them. The
times are medians. The ratio is the median, over turns, of the ratio to CLIP's step of the same turn; `low` and
`high` are the quartiles of that ratio.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from torch import Tensor

from patchword import AlignmentModule
from patchword.commands.objective_names import OURS, build
from patchword.commands.options import device_name
from patchword.data.augmentation import Views
from patchword.data.batch import Batch, collate
from patchword.data.scenes import EmojiScenes
from patchword.data.scenes.views import WithViews
from patchword.encoders import HFText, TimmImage, TwoTowers


def vit(batch: int) -> tuple[TwoTowers, Batch]:
    """Two transformers, and crowded scenes at 224 pixels."""
    config = {"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6}
    text = HFText(config=config | {"intermediate_size": 1536}, tokenizer="emoji-scenes")
    return TwoTowers(TimmImage("vit_small_patch16_224"), text), crowded(batch, 224)


def small(batch: int) -> tuple[TwoTowers, Batch]:
    """The towers and the scenes of configs/clip.yaml."""
    config = {"model_type": "t5", "num_layers": 0, "d_model": 96, "dropout_rate": 0.0}
    image = TimmImage("mobilenetv4_conv_small", level=2, image_size=64)
    towers = TwoTowers(image, HFText(config=config, tokenizer="emoji-scenes"), embed_dim=96)
    return towers, with_views(EmojiScenes("train", batch))


def natural(batch: int) -> tuple[TwoTowers, Batch]:
    """The towers of configs/natural/flickr8k.yaml with random weights that are trained, and crowded scenes."""
    config = {"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12}
    text = HFText(config=config | {"intermediate_size": 1536}, tokenizer="emoji-scenes")
    image = TimmImage("tf_efficientnet_lite0", level=4, image_size=288)
    return TwoTowers(image, text, embed_dim=128), crowded(batch, 288)


def crowded(batch: int, side: int) -> Batch:
    """Scenes of four to six objects that overlap."""
    return with_views(EmojiScenes("train", batch, image_size=side, objects=(4, 6), overlap=0.3))


def with_views(scenes: EmojiScenes) -> Batch:
    """All scenes as one batch, with the crops of configs/cosmos.yaml; the other objectives ignore them."""
    samples = WithViews(scenes, Views(local_crops=2, distort=False), 0)
    return collate([samples[i] for i in range(len(samples))])


TOWERS = {"vit": (vit, 16), "scenes": (small, 64), "natural": (natural, 16)}


def loss_of(module: AlignmentModule, batch: Batch) -> Tensor:
    """The sum of the objective's terms, with everything that the objective needs."""
    images, texts, tokens = module(batch)
    return torch.stack(list(module.losses(*module.supply(images, texts, tokens, batch)).values())).sum()


def update(module: AlignmentModule, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """The backward pass, and the steps of the optimizer and of the teacher."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if module.teacher is not None:
        module.teacher.update_parameters(module.encoder)


def main() -> None:
    """Measure all objectives, print the table, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--towers", choices=list(TOWERS), default="vit")
    parser.add_argument("--batch", type=int, help="number of pairs (default: 64 for scenes, otherwise 16)")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--objectives", nargs="+", choices=list(OURS), default=list(OURS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--csv", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    torch.manual_seed(0)
    towers, usual = TOWERS[options.towers]
    pairs = options.batch or usual
    encoder, batch = towers(pairs)
    encoder, batch = encoder.to(options.device), batch.to(options.device)
    length = encoder.tokenize(batch.captions).ids.shape[1]

    def step(module: AlignmentModule, optimizer: torch.optim.Optimizer) -> float:
        """The seconds of one complete step."""
        wait(options.device)
        start = time.perf_counter()
        update(module, optimizer, loss_of(module, batch))
        wait(options.device)
        return time.perf_counter() - start

    trained = {}
    for name in dict.fromkeys(["CLIP", *options.objectives]):
        module = AlignmentModule(encoder, build(OURS[name]), token_selection="content").to(options.device)
        trained[name] = module, torch.optim.AdamW([*encoder.parameters(), *module.objective.parameters()])
    times: dict[str, list[float]] = {name: [] for name in trained}
    for repeat in range(options.repeats + 2):
        for name, (module, optimizer) in trained.items():
            seconds = step(module, optimizer)
            if repeat >= 2:  # the first steps allocate memory
                times[name].append(seconds)
    where = f"{torch.get_num_threads()} threads of {device_name(options.device)}"
    print(f"towers {options.towers}, batch {pairs}, {length} tokens, {where}:")
    rows = []
    for name, found in times.items():
        ratios = [own / clip for own, clip in zip(found, times["CLIP"], strict=True)]
        low, ratio, high = (f"{quartile:.3f}" for quartile in np.quantile(ratios, (0.25, 0.5, 0.75)))
        seconds = statistics.median(found)
        rows.append({"objective": name, "seconds": f"{seconds:.4g}", "ratio": ratio, "low": low, "high": high})
        print(f"  {name:<8} {1e3 * seconds:8.1f} ms   {ratio} × ({low} to {high})")
    if options.csv:
        same = {"towers": options.towers, "batch": pairs, "repeats": options.repeats, "device": where}
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0], *same, "torch"], lineterminator="\n")
            writer.writeheader()
            writer.writerows(row | same | {"torch": torch.__version__} for row in rows)


def wait(device: str) -> None:
    """Wait until the GPU has finished."""
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
