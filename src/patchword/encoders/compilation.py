"""torch.compile of the towers."""

from __future__ import annotations

from patchword.encoders.base import Encoder


def compile_towers(encoder: Encoder, backend: str = "inductor") -> None:
    """Compile the towers in place: no parameter changes its name. Captions' lengths become dynamic when they differ.

    Args:
        encoder: Whose `towers` are compiled when they are called first.
        backend: Of `torch.compile`.
    """
    for tower in encoder.towers():
        tower.compile(backend=backend)
