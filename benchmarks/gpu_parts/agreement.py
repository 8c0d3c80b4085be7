"""Loss and gradients of every objective on the GPU beside one process in float64 on the CPU.

The towers are small transformers, as in `patchword verify`. `fp32` and `bf16` show rounding. The two-pass mode runs in
float64, so a difference of more than 1e-7 is an error.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

from torch import Tensor

from gpu_parts.rows import Cases, Setup
from patchword.verify.modes import Mode, compare, modes, reference, scenes


def cases(setup: Setup) -> Cases:
    """Every objective in every mode of one process."""
    for name in setup.main_objectives + setup.other_objectives:
        for mode in modes(ranks=1):
            yield f"{name} {mode.name}", partial(difference, name, mode, setup.device)


def difference(name: str, mode: Mode, device: str) -> dict[str, Any]:
    """The relative differences of the loss and of the parameter that differs most."""
    found = compare(name, mode, scenes(4), device, expected(name))
    note = "" if found.right else f"WRONG: {found.parameter}"
    return {"loss_error": found.loss, "gradient_error": found.gradient, "note": note}


@cache
def expected(name: str) -> dict[str, Tensor]:
    """The loss and gradients in float64 on the CPU."""
    return reference(name, scenes(4), "cpu")
