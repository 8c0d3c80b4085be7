"""Compile the towers with torch.compile."""

from __future__ import annotations

from patchword.encoders.base import Encoder


def compile_towers(encoder: Encoder, backend: str = "inductor") -> None:
    """Compile the towers in place, without changing the names of parameters.

    The length of captions becomes a dynamic dimension when it changes between calls.

    Args:
        encoder: The encoder. Each of its `towers` is compiled at its first call.
        backend: The backend of `torch.compile`.
    """
    for tower in encoder.towers():
        tower.compile(backend=backend)
