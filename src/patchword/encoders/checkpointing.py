"""Gradient checkpointing: store only the inputs of a tower's blocks and recompute their activations.

It is implemented here for all towers because the options of timm and transformers update the running statistics of
batch norms twice per step: once in the forward pass, and again when a block is recomputed.
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
from patchword.errors import UserError


def checkpoint_gradients(encoder: Encoder) -> None:
    """Recompute the activations of every block of the trained towers in the backward pass.

    Loss, gradients, dropout and running statistics do not change.

    Raises:
        UserError: If `encoders.blocks` finds no blocks in a trained tower.
    """
    for tower in encoder.towers():
        if not any(parameter.requires_grad for parameter in tower.parameters()):
            continue
        found = blocks(tower)
        if not found and any(isinstance(part, (nn.Linear, nn.Conv2d)) for part in tower.modules()):
            name = type(getattr(tower, "backbone", tower)).__name__
            raise UserError(
                f"gradient_checkpointing finds no repeated blocks in {name}: use another backbone, or set "
                "gradient_checkpointing to false"
            )
        for block in found:
            if "forward" not in vars(block):  # otherwise it is already checkpointed
                _checkpoint(block)


def _checkpoint(block: Any) -> None:
    """Replaces the `forward` method of a block. The names of its parameters do not change."""
    forward = block.forward

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), spare_buffers(block)

    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        if not block.training:  # evaluation; maps read attention with gradients
            return forward(*args, **kwargs)
        if torch.compiler.is_compiling():  # compiled code updates buffers once, and does not support context_fn
            return checkpoint(forward, *args, use_reentrant=False, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    block.forward = checkpointed


@contextmanager
def spare_buffers(module: nn.Module) -> Iterator[None]:
    """Context in which updates of the buffers of `module`, such as running statistics, are discarded."""
    buffers = [(part, name, x) for part in module.modules() for name, x in part.named_buffers(recurse=False)]
    for part, name, x in buffers:
        setattr(part, name, x.clone())
    try:
        yield
    finally:
        for part, name, x in buffers:
            setattr(part, name, x)
