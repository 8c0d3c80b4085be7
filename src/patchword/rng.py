"""The random state of this process as one tensor, which a checkpoint can hold."""

from __future__ import annotations

import torch
from torch import Tensor


def rng_state() -> Tensor:
    """The CPU generator's state, followed by the current GPU's where there is one; uint8."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_available():
        states.append(torch.cuda.get_rng_state())
    return torch.cat(states)


def set_rng_state(state: Tensor) -> None:
    """Undo `rng_state`; a GPU's part is left out on a machine of another kind."""
    size = torch.get_rng_state().numel()
    torch.set_rng_state(state[:size].clone())
    if torch.cuda.is_available() and state.numel() - size == torch.cuda.get_rng_state().numel():
        torch.cuda.set_rng_state(state[size:].clone())
