"""Two processes that share one GPU, beside one process in float64 on the CPU.

They exchange tensors of the GPU by gloo, because NCCL refuses two processes on one device. gloo does not support all
operations on such tensors; what it does not support is a row that says so.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from gpu_parts.rows import Cases, Setup
from patchword.verify.modes import Difference, Mode, compare, modes, reference, scenes
from patchword.verify.processes import spawn


def cases(setup: Setup) -> Cases:
    """Every mode of two processes; a dry run has only the first."""
    for mode in modes(ranks=2)[: 1 if setup.small else None]:
        yield mode.name, partial(worst, setup.main_objectives, mode, setup.device)


def worst(names: list[str], mode: Mode, device: str) -> dict[str, Any]:
    """The largest differences of these objectives."""
    found, _ = spawn(differences, names, mode, device, ranks=2)
    note = ", ".join(f"WRONG: {x.objective} {x.parameter}" for x in found if not x.right)
    return {
        "loss_error": max(x.loss for x in found),
        "gradient_error": max(x.gradient for x in found),
        "note": note or ", ".join(names),
    }


def differences(_: str, names: list[str], mode: Mode, device: str) -> list[Difference]:
    """The differences of this mode. Both processes call this."""
    samples = scenes(8)
    return [compare(name, mode, samples, device, reference(name, samples, "cpu")) for name in names]
