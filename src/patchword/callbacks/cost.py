"""Measures what a training run costs and records what it started with; checkpoints store both."""

from __future__ import annotations

import math
import resource
import statistics
import sys
import time
from collections import deque
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from patchword.data.loader import ResumableLoader
from patchword.distributed import maximum
from patchword.provenance.machine import provenance

LAST = 1000  # number of latest steps whose median is reported


class Cost(Callback):
    """Adds the cost of training to the entry `trained` of checkpoints, which results copy from their checkpoint.

    seconds
        Wall time since training began, including validation, summed over resumed runs.
    step_seconds
        Median wall time of the last 1000 steps: forward pass, backward pass and optimizer, without the wait for data.
    step_cpu_seconds
        Median processor time of all threads in the same steps. It is more reliable than wall time on a shared CPU.
    peak_memory, memory_of
        Maximum over ranks of the bytes that torch allocated on a `GPU`, or of the resident set of the `process`.
    batch
        Number of pairs in one step on all ranks together.
    encoder_at_start, data_order
        Checksums of the encoder's weights before the first step, and of the order of the first epoch's samples. Two
        runs that have the same checksums are a pair: only their objectives differ.
    versions, commit, hardware
        See `patchword.provenance.machine`.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Any] = {"seconds": 0.0, "peak_memory": 0, "batch": 0, "data_order": None}
        self._steps: deque[tuple[float, float]] = deque(maxlen=LAST)
        self._resumed_at = 0.0
        self._step_began = 0.0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock. A resumed run keeps the checksums of its first start."""
        self._kept.setdefault("encoder_at_start", pl_module.encoder_at_start)
        self._resumed_at = time.perf_counter()
        loader = trainer.train_dataloader
        if isinstance(loader, ResumableLoader) and self._kept["data_order"] is None:
            self._kept["data_order"] = f"{loader.order_checksum() or 0:08x}"

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock of a step."""
        self._kept["batch"] = len(batch) * trainer.world_size
        self._step_began = time.perf_counter(), time.process_time()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the clock of a step. A GPU has finished, because the module has checked that its loss is finite."""
        wall, processor = self._step_began
        self._steps.append((time.perf_counter() - wall, time.process_time() - processor))

    def state_dict(self) -> dict[str, Any]:
        """The measurements that a resumed run continues."""
        now = time.perf_counter()
        seconds = self._kept["seconds"] + (now - self._resumed_at if self._resumed_at else 0)
        return {**self._kept, "seconds": seconds, "steps": list(self._steps)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the measurements of an earlier run."""
        self._kept = {name: value for name, value in state_dict.items() if name != "steps"}
        self._steps.extend(state_dict["steps"])

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the cost in a checkpoint; called on all ranks."""
        on_gpu = pl_module.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(pl_module.device) if on_gpu else resident_set_peak()
        largest = maximum(torch.tensor(float(peak), dtype=torch.float64, device=pl_module.device))
        self._kept["peak_memory"] = max(self._kept["peak_memory"], int(largest))
        state = self.state_dict()
        wall, processor = zip(*(state.pop("steps") or [(math.nan, math.nan)]), strict=True)
        checkpoint.setdefault("trained", {}).update(
            state,
            step_seconds=statistics.median(wall),
            step_cpu_seconds=statistics.median(processor),
            memory_of="GPU" if on_gpu else "process",
            **provenance(trainer.world_size),
        )


def resident_set_peak() -> int:
    """The peak resident set of this process in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
