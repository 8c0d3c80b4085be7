"""Learning rate schedule: a linear warm-up, then a cosine decay."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LearningRateFinder

from patchword.errors import UserError


@dataclass
class Schedule:
    """Linear warm-up, then cosine decay to a fraction of the peak at the last step.

    If training has no end (neither max_steps nor max_epochs is set), the rate remains at its peak after the warm-up.

    Args:
        warmup_steps: Number of optimizer steps before the peak.
        final: The rate at the last step, as a fraction of the peak.
    """

    warmup_steps: int = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise UserError(f"schedule.warmup_steps must be 0 or more, not {self.warmup_steps}")
        if not 0 <= self.final <= 1:
            raise UserError(f"schedule.final must be a fraction of the peak between 0 and 1, not {self.final}")

    def factor(self, total_steps: Callable[[], float]) -> Callable[[int], float]:
        """The factor of the peak learning rate as a function of the step.

        Args:
            total_steps: Returns the number of training steps. It is not called before step 1: an earlier call would
                make Lightning load the training data before it restores the loader's position from a checkpoint.
        """

        def at(step: int) -> float:
            if step < self.warmup_steps:
                return (step + 1) / (self.warmup_steps + 1)
            if step == 0:
                return 1.0
            total = total_steps()
            if math.isinf(total):
                return 1.0
            progress = min(1.0, (step - self.warmup_steps) / max(1.0, total - self.warmup_steps))
            return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2

        return at


def refuse_finder(trainer: Trainer) -> None:
    """Raise UserError for a `LearningRateFinder` that is to set the rate, because no attribute of the module has it."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    if any(isinstance(one, LearningRateFinder) and one._update_attr for one in callbacks):
        raise UserError(
            "LearningRateFinder cannot set the learning rate, because it is an option of the optimizer: read the rate "
            "that Tuner(trainer).lr_find(module, datamodule=data, update_attr=False).suggestion() returns in Python, "
            "and set model.optimizer.lr"
        )
