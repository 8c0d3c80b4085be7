"""Stores the random state of this process in one tensor, which a checkpoint can hold."""

from __future__ import annotations

import torch
from torch import Tensor


def rng_state() -> Tensor:
    """The state of the CPU's generator, followed by that of the current GPU if there is one. Type uint8."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_available():
        states.append(torch.cuda.get_rng_state())
    return torch.cat(states)


def set_rng_state(state: Tensor) -> None:
    """Restore a state that `rng_state` returned; the part of a GPU is ignored on another kind of machine."""
    size = torch.get_rng_state().numel()
    torch.set_rng_state(state[:size].clone())
    if torch.cuda.is_available() and state.numel() - size == torch.cuda.get_rng_state().numel():
        torch.cuda.set_rng_state(state[size:].clone())
