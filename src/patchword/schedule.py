"""The learning rate over training: a linear warm-up, then a cosine to zero."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from patchword.errors import InputError


@dataclass
class Schedule:
    """Linear warm-up, then cosine decay to a fraction of the peak at the last step.

    Without an end (neither max_steps nor max_epochs) the rate stays at its peak after the warm-up.

    Args:
        warmup_steps: Optimiser steps until the peak.
        final: The rate at the last step, as a fraction of the peak.
    """

    warmup_steps: int = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise InputError(f"schedule.warmup_steps must be 0 or more, not {self.warmup_steps}")
        if not 0 <= self.final <= 1:
            raise InputError(f"schedule.final is a fraction of the peak, between 0 and 1, not {self.final}")

    def factor(self, total_steps: Callable[[], float]) -> Callable[[int], float]:
        """The factor on the peak rate as a function of the step.

        Args:
            total_steps: Asked for the length of training, and not before step 1: asking Lightning earlier makes
                it load the training data before it restores the loader's position from a checkpoint.
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
