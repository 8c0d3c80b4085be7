"""Find the repeated blocks of a tower, the units of sharding and gradient checkpointing."""

from __future__ import annotations

from torch import nn


def blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks of all lists of layers in `module`, from input to output.

    A list of layers is an `nn.ModuleList` or `nn.Sequential` of modules of one class that have child modules
    themselves. Examples are the layers of a transformer and the blocks in a stage of a convolutional network. A list of
    stages is replaced by the blocks of its stages. A block is not split if the small lists in it hold at most half of
    its parameters.
    """
    if not _is_list_of_layers(module):
        return [block for child in module.children() for block in blocks(child)]
    found = []
    for part in module.children():
        inner = blocks(part)
        found += inner if 2 * _size(*inner) > _size(part) else [part]
    return found


def _is_list_of_layers(module: nn.Module) -> bool:
    parts = list(module.children())
    return (
        isinstance(module, (nn.ModuleList, nn.Sequential))
        and len({type(part) for part in parts}) == 1
        and all(next(part.children(), None) is not None for part in parts)
    )


def _size(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())
