"""Gradient checkpointing: keep the inputs of a tower's blocks, and compute what lies inside them again.

For every tower alike, rather than by the switches of timm and transformers: those move the running statistics of batch
norms twice a step, once more when the block is computed again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from patchword.encoders.base import Encoder
from patchword.encoders.blocks import blocks
from patchword.errors import InputError


def checkpoint_gradients(encoder: Encoder) -> None:
    """Make every block of the towers that train compute its activations again in the backward pass.

    Loss, gradients, dropout and running statistics are those of the plain encoder.

    Raises:
        InputError: If a tower that trains has no blocks that `encoders.blocks` can find.
    """
    for tower in encoder.towers():
        if not any(parameter.requires_grad for parameter in tower.parameters()):
            continue
        found = blocks(tower)
        if not found and any(isinstance(part, (nn.Linear, nn.Conv2d)) for part in tower.modules()):
            name = type(getattr(tower, "backbone", tower)).__name__
            raise InputError(
                f"gradient_checkpointing finds no repeated blocks in {name}: use another backbone, or turn it off"
            )
        for block in found:
            if "forward" not in vars(block):  # or it has been done
                _checkpoint(block)


def _checkpoint(block: Any) -> None:
    """Replaces the `forward` of one block; its parameters and their names stay."""
    forward = block.forward

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), spare_buffers(block)

    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():  # it computes changes of buffers once, and takes no contexts
            return checkpoint(forward, *args, use_reentrant=False, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    block.forward = checkpointed


@contextmanager
def spare_buffers(module: nn.Module) -> Iterator[None]:
    """In this block what is computed changes copies of the buffers, such as running statistics, which are dropped."""
    buffers = [(part, name, x) for part in module.modules() for name, x in part.named_buffers(recurse=False)]
    for part, name, x in buffers:
        setattr(part, name, x.clone())
    try:
        yield
    finally:
        for part, name, x in buffers:
            setattr(part, name, x)
