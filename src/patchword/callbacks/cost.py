"""What a training cost, and what it began with; kept in its checkpoints, so that it goes wherever the weights go."""

from __future__ import annotations

import math
import statistics
import sys
import time
import zlib
from collections import deque
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from patchword.data.loader import ResumableLoader
from patchword.distributed import maximum
from patchword.provenance import provenance

LAST = 1000  # steps whose median is reported


class Cost(Callback):
    """Adds to what a checkpoint says of its training (`trained`), and a result says of its checkpoint.

    seconds
        Wall time since training began, validation included, summed over resumed runs.
    step_seconds
        Median of the last 1000 steps: forward and backward pass and optimiser, without the wait for data.
    step_cpu_seconds
        Likewise, of the processor time of all threads: on a CPU that others use, too, it says more than wall time.
    peak_memory, memory_of
        Bytes: what torch allocated on a `GPU`, or the resident set of a `process` on the CPU; the largest of all ranks.
    batch
        Pairs in a step of all ranks.
    encoder_at_start, data_order
        Checksums of the encoder's weights before the first step, and of the order of the first epoch's samples. Runs
        that have both in common are pairs: their difference is that of the objectives.
    versions, commit, hardware
        See `patchword.provenance`.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Any] = {"seconds": 0.0, "peak_memory": 0, "batch": 0, "data_order": None}
        self._steps: deque[tuple[float, float]] = deque(maxlen=LAST)
        self._resumed_at = 0.0
        self._step_began = 0.0, 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the checksum of the weights before they are sharded, or loaded from a checkpoint."""
        if stage == "fit":
            self._kept["encoder_at_start"] = weights_checksum(pl_module.encoder)  # type: ignore[arg-type]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._resumed_at = time.perf_counter()
        loader = trainer.train_dataloader
        if isinstance(loader, ResumableLoader) and self._kept["data_order"] is None:
            self._kept["data_order"] = f"{loader.order_checksum() or 0:08x}"

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """A step begins."""
        self._kept["batch"] = len(batch) * trainer.world_size
        self._step_began = time.perf_counter(), time.process_time()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A step ends; on a GPU, too, for the module has looked whether its loss is finite."""
        wall, processor = self._step_began
        self._steps.append((time.perf_counter() - wall, time.process_time() - processor))

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on from."""
        now = time.perf_counter()
        seconds = self._kept["seconds"] + (now - self._resumed_at if self._resumed_at else 0)
        return {**self._kept, "seconds": seconds, "steps": list(self._steps)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from an earlier run's."""
        self._kept = {name: value for name, value in state_dict.items() if name != "steps"}
        self._steps.extend(state_dict["steps"])

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write it down; called on all ranks."""
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


def weights_checksum(module: nn.Module) -> str:
    """Eight hexadecimal digits that differ where any parameter or buffer differs."""
    value = 0
    for name, tensor in module.state_dict().items():
        content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        value = zlib.crc32(content.numpy(), zlib.crc32(name.encode(), value))
    return f"{value:08x}"


def resident_set_peak() -> int:
    """The largest resident set of this process so far, in bytes; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
