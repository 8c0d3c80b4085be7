"""Training steps of every objective beside the same step with open_clip's ClipLoss: two-pass mode, bf16, AdamW.

The towers are a ViT-B/16 at 224 pixels and a BERT as large as CLIP's text tower, with random weights. Each objective
takes turns with open_clip's loss; the ratio is the median over turns. MFU divides three times the FLOPs of one forward
pass of both towers (so the second forward pass of the two-pass mode, views, hard negatives and the loss are overhead)
by the step's time and by the GPU's dense bf16 peak: NVIDIA's figure for Hopper, otherwise a measured product.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW
from torch.utils.flop_counter import FlopCounterMode
from training_modes import peak_of
from training_step import loss_of, update, wait

from gpu_parts.rows import TARGETS, Cases, Setup
from patchword import AlignmentModule, Images, Texts
from patchword.bench import peers
from patchword.commands.objective_names import build
from patchword.commands.options import device_name
from patchword.data.augmentation import Views
from patchword.data.batch import Batch, collate
from patchword.data.scenes import EmojiScenes
from patchword.data.scenes.views import WithViews
from patchword.encoders import HFText, TimmImage, TwoTowers
from patchword.encoders.compilation import compile_towers
from patchword.objectives import CLIP

HOPPER = 989e12  # FLOP/s of the H100 and H200 (SXM) in bf16 without sparsity, by NVIDIA's data sheets
ENOUGH = 8.0  # seconds after which no further turn of a case begins


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measurement.

    Attributes:
        batches: The numbers of pairs.
        chunk: The chunk size of the two-pass mode.
        pixels: Height and width of images.
        blocks: The blocks of each tower.
        image_width: The width of the image tower.
        text_width: The width of the text tower.
        scenes: The number of different pairs, which are repeated to fill a batch.
        product: The size of the matrices whose product is timed.
        turns: The largest number of turns.
    """

    batches: tuple[int, ...] = (1024, 4096)
    chunk: int = 256
    pixels: int = 224
    blocks: int = 12
    image_width: int = 768
    text_width: int = 512
    scenes: int = 256
    product: int = 8192
    turns: int = 5


SMALL = Sizes((4, 8), chunk=2, pixels=64, blocks=1, image_width=48, text_width=32, scenes=4, product=256, turns=1)


class OpenClip(AlignmentModule):
    """CLIP with open_clip's ClipLoss, which computes in the precision of autocast."""

    def losses(self, images: Images, texts: Texts) -> dict[str, Tensor]:
        """open_clip's loss."""
        return {"open_clip": peers.loss(self.objective, images, texts)}


def cases(setup: Setup) -> Cases:
    """CLIP and the objectives with a target first, then all others."""
    sizes = SMALL if setup.small else Sizes()
    steps = Steps(setup, sizes)
    yield "bf16 matrix product", lambda: {"note": f"{steps.flops_per_second / 1e12:.3g} TFLOP/s"}
    for names in (setup.main_objectives, setup.other_objectives):
        for size in sizes.batches if names else ():
            if names == setup.main_objectives:
                yield f"{steps.base_name}, B={size}", partial(steps.measure_base, size)
            for name in names:
                yield f"{name}, B={size}", partial(steps.measure, name, size)


class Steps:
    """Towers, batches and the step with which all others are compared."""

    def __init__(self, setup: Setup, sizes: Sizes) -> None:
        torch.manual_seed(0)
        self.setup, self.sizes = setup, sizes
        vit = {"depth": sizes.blocks, "embed_dim": sizes.image_width}
        image = TimmImage("vit_base_patch16_224", image_size=sizes.pixels, model_args=vit)
        bert = {"model_type": "bert", "num_hidden_layers": sizes.blocks, "num_attention_heads": 8}
        bert |= {"hidden_size": sizes.text_width, "intermediate_size": 4 * sizes.text_width}
        text = HFText(config=bert, tokenizer="emoji-scenes")
        self.encoder = TwoTowers(image, text, embed_dim=sizes.text_width).to(setup.device)
        scenes = EmojiScenes("train", sizes.scenes, image_size=sizes.pixels, objects=(4, 6), overlap=0.3)
        views = WithViews(scenes, Views(local_crops=2, distort=False), 0)
        self.samples = [views[i] for i in range(sizes.scenes)]
        self.batches: dict[int, Batch] = {}
        self.flops_per_second = product_speed(setup.device, sizes.product)
        is_hopper = any(name in device_name(setup.device) for name in ("H100", "H200"))
        self.peak = HOPPER if is_hopper else self.flops_per_second
        kind = OpenClip if peers.installed() else AlignmentModule
        self.base_name = "open_clip" if peers.installed() else "CLIP (no open_clip here)"
        self.base = self.step_of(kind(self.encoder, CLIP(), token_selection="content", chunk_size=sizes.chunk))
        self.flops_per_image = self.tower_flops(sizes.batches[0]) / sizes.batches[0]
        if setup.compile:
            compile_towers(self.encoder)

    def batch(self, size: int) -> Batch:
        """A batch of repeated scenes."""
        if size not in self.batches:
            samples = [self.samples[i % len(self.samples)] for i in range(size)]
            self.batches[size] = collate(samples).to(self.setup.device)
        return self.batches[size]

    def tower_flops(self, size: int) -> int:
        """The FLOPs of a forward pass of both towers, before they are compiled."""
        module = AlignmentModule(self.encoder, CLIP(), chunk_size=self.sizes.chunk)
        autocast = torch.autocast(self.setup.device, torch.bfloat16)
        with torch.no_grad(), autocast, FlopCounterMode(display=False) as counter:
            module(self.batch(size))
        return counter.get_total_flops()

    def step_of(self, module: AlignmentModule) -> Callable[[int], None]:
        """A function that runs a training step for a batch of the given size."""
        module.to(self.setup.device).train()
        optimizer = AdamW(module.parameters())

        def step(size: int) -> None:
            with torch.autocast(self.setup.device, torch.bfloat16):
                loss = loss_of(module, self.batch(size))
            update(module, optimizer, loss)

        return step

    def timed(self, step: Callable[[int], None], size: int) -> float:
        """The seconds of a step."""
        wait(self.setup.device)
        start = time.perf_counter()
        step(size)
        wait(self.setup.device)
        return time.perf_counter() - start

    def measure_base(self, size: int) -> dict[str, Any]:
        """The costs of the step with which all others are compared."""
        return self.costs(self.base, size, [self.base])

    def measure(self, name: str, size: int) -> dict[str, Any]:
        """The costs of an objective's step, and its ratio to the base."""
        module = AlignmentModule(self.encoder, build(name), token_selection="content", chunk_size=self.sizes.chunk)
        step = self.step_of(module)
        return self.costs(step, size, [step, self.base]) | {"target": TARGETS.get(name)}

    def costs(self, step: Callable[[int], None], size: int, turns: list[Callable[[int], None]]) -> dict[str, Any]:
        """The costs of `step`; `turns` are the steps that take turns, of which the last is the base."""
        step(size)  # allocates the states of the optimizer, and compiles
        peak = peak_of(partial(step, size), self.setup.device)
        began, times = time.monotonic(), []
        for turn in range(self.sizes.turns):
            if turn and time.monotonic() - began > ENOUGH:
                break
            order = turns if turn % 2 else turns[::-1]
            found = {id(each): self.timed(each, size) for each in order}
            times.append((found[id(step)], found[id(turns[-1])]))
        seconds = statistics.median(own for own, _ in times)
        return {
            "seconds": seconds,
            "ratio": statistics.median(own / base for own, base in times),
            "peak_bytes": peak,
            "images_per_second": size / seconds,
            "mfu": 3 * self.flops_per_image * size / seconds / self.peak,
            "note": f"{len(times)} turn" + "s" * (len(times) > 1),
        }


def product_speed(device: str, size: int) -> float:
    """The FLOP/s of a product of two square bf16 matrices."""
    x = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    times = []
    for _ in range(10):
        wait(device)
        start = time.perf_counter()
        x @ x
        wait(device)
        times.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(times)
