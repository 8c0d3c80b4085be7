"""Compare `patchword fit` with a bare PyTorch loop over the same modules and the same batch.

    python benchmarks/fit_step.py                the towers and the batch of configs/clip.yaml
    python benchmarks/fit_step.py --towers vit   ViT-S/16 at 224 pixels with a BERT of 6 layers, batch 16

Lightning's Trainer runs `AlignmentModule` with the callbacks, loggers, clipping and progress bar of `patchword fit`.
After every step of it, the bare loop runs one step on a copy of the module: forward, backward, clipping, AdamW. A step
of `fit` lasts from the end of one bare step to the beginning of the next, so everything that Lightning and patchword do
between two steps counts. Each is compared with the mean of the bare steps before and after it. The ratio is the median
over steps, with a 95 % bootstrap interval. The resident memory of the process after a tenth of the steps and at the end
shows whether it grows. On a CPU, times are those of the processor (all threads), which depend less
on other programs than wall-clock time. Validation is off. Checkpoints are written as usual, but are too rare to
change a median.
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
import time
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader
from training_step import TOWERS, loss_of, wait

from patchword import AlignmentModule
from patchword.bench.measure import resident
from patchword.callbacks.checkpoint import Checkpoint
from patchword.callbacks.cost import Cost
from patchword.callbacks.results import Results
from patchword.commands.objective_names import OURS, build
from patchword.commands.options import device_name
from patchword.data.batch import Batch

LARGEST_NORM = 1.0  # of the gradient, as in configs/clip.yaml
WARM = 10  # first steps, which are not counted


class BareLoop(Callback):
    """Runs a bare step after every step of the trainer, and measures both.

    Attributes:
        fit: The seconds of the trainer's steps.
        bare: The seconds of the bare steps; the first one is before the trainer's first step.
        memory: The resident bytes of the process after each step.
    """

    def __init__(self, module: AlignmentModule, batch: Batch, device: str) -> None:
        self.module, self.batch, self.device = module.to(device).train(), batch, device
        self.optimizer = torch.optim.AdamW(module.parameters())
        self.clock = time.process_time if device == "cpu" else time.perf_counter
        self.fit: list[float] = []
        self.bare: list[float] = []
        self.memory: list[int] = []
        self._end = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run the first bare step."""
        self._step()

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """End the trainer's step, and run a bare one."""
        wait(self.device)
        self.fit.append(self.clock() - self._end)
        self.memory.append(resident("VmRSS") or 0)
        self._step()

    def _step(self) -> None:
        begin = self.clock()
        loss = loss_of(self.module, self.batch)
        self.optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(self.module.parameters(), LARGEST_NORM)
        self.optimizer.step()
        wait(self.device)
        self._end = self.clock()
        self.bare.append(self._end - begin)


def main() -> None:
    """Measure each objective, and print its ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--towers", choices=list(TOWERS), default="scenes")
    parser.add_argument("--batch", type=int, help="number of pairs (default: 64 for scenes, otherwise 16)")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--objectives", nargs="+", choices=list(OURS), default=["CLIP", "SPARC"])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if options.steps < 1:
        parser.error("--steps must be 1 or more")
    towers, usual = TOWERS[options.towers]
    where = f"{torch.get_num_threads()} threads of {device_name(options.device)}"
    print(f"towers {options.towers}, batch {options.batch or usual}, {options.steps} steps, {where}:")
    for name in options.objectives:
        torch.manual_seed(0)
        encoder, batch = towers(options.batch or usual)
        module = AlignmentModule(encoder, build(OURS[name]), token_selection="content")
        loop = measured(module, batch.to(options.device), options.steps, options.device)
        bare, fit = np.array(loop.bare[WARM:]), np.array(loop.fit[WARM:])
        low, ratio, high = interval(fit / ((bare[:-1] + bare[1:]) / 2))
        both = f"fit {1e3 * np.median(fit):7.2f} ms, bare {1e3 * np.median(bare):7.2f} ms"
        print(f"  {name:<8} {both}, ratio {ratio:.3f} ({low:.3f} to {high:.3f})")
        early, late = (loop.memory[step] / 2**20 for step in (WARM + options.steps // 10, -1))
        print(f"  {'':<8} memory {early:.0f} MiB after a tenth of the steps, {late:.0f} MiB at the end", flush=True)


def measured(module: AlignmentModule, batch: Batch, steps: int, device: str) -> BareLoop:
    """The times of the bare steps and of the trainer's steps between them, and the memory after each."""
    loop = BareLoop(copy.deepcopy(module), batch, device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator=device,
            devices=1,
            max_steps=steps + WARM,
            limit_val_batches=0,
            gradient_clip_val=LARGEST_NORM,
            callbacks=[Cost(), Results(), Checkpoint(folder, save_last=True, every_n_train_steps=100), loop],
            logger=[CSVLogger(folder), TensorBoardLogger(folder, default_hp_metric=False)],
        )
        trainer.fit(module, DataLoader([batch] * (steps + WARM), batch_size=None))
    return loop


def interval(ratios: np.ndarray) -> np.ndarray:
    """The lower bound, the median and the upper bound of a 95 % bootstrap interval of the median."""
    drawn = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return np.array([low, np.median(ratios), high])


if __name__ == "__main__":
    main()
