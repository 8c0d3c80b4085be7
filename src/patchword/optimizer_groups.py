"""Which parameters share a learning rate and a weight decay: heads and towers, and the towers' blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from patchword.encoders.base import Encoder
from patchword.encoders.blocks import blocks
from patchword.errors import InputError


@dataclass
class FineTuning:
    """How pretrained towers learn beside heads that start from nothing.

    Args:
        tower_lr: The towers' learning rate, as a factor of that of the heads and of the objective.
        layer_decay: The learning rate of a tower's block, as a factor of that of the block after it. The last block has
            it once, what lies before the first block once more than that block, the last norm not at all (as in BEiT).
        decay_embeddings: Whether weight decay also shrinks what a backbone asks to spare: position embeddings and class
            tokens (timm's `no_weight_decay`), and tables of positions in models of transformers.
    """

    tower_lr: float = 1.0
    layer_decay: float = 1.0
    decay_embeddings: bool = True

    def __post_init__(self) -> None:
        for name in ("tower_lr", "layer_decay"):
            value = getattr(self, name)
            if not (math.isfinite(value) and 0 < value <= 1):
                raise InputError(f"fine_tuning.{name} is a factor above 0, and 1 at most, not {value}")


@dataclass
class Group:
    """Parameters with one learning rate and one weight decay.

    Attributes:
        names: The parameters' names in the module.
        parameters: The parameters.
        factor: Of the learning rate.
        decay: Whether weight decay shrinks them.
    """

    names: list[str]
    parameters: list[nn.Parameter]
    factor: float
    decay: bool


def parameter_groups(module: nn.Module, encoder: Encoder, fine_tuning: FineTuning) -> list[Group]:
    """All parameters that take a gradient, each in one group; those that are decayed come first.

    Matrices are decayed; biases, norms and temperatures, which have fewer than two dimensions, are not.

    Args:
        module: Holds all parameters: those of `encoder`, and those of an objective.
        encoder: Its towers' blocks are told apart.
        fine_tuning: The rates.

    Raises:
        InputError: If the rate shall decay from block to block, and a tower has no blocks.
    """
    factors = dict(_factors(encoder, fine_tuning))
    spared = set() if fine_tuning.decay_embeddings else set(_spared(encoder))
    found: dict[tuple[bool, float], Group] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            factor, decay = factors.get(parameter, 1.0), parameter.ndim >= 2 and parameter not in spared
            group = found.setdefault((not decay, -factor), Group([], [], factor, decay))
            group.names.append(name)
            group.parameters.append(parameter)
    return [found[key] for key in sorted(found)]


def optimizer_of(groups: list[Group], make: Callable[[Any], Optimizer]) -> Optimizer:
    """The optimiser that `make` makes of `groups`, each with its share of the learning rate."""
    no_decay = {"weight_decay": 0.0}
    optimizer = make([{"params": group.parameters} | ({} if group.decay else no_decay) for group in groups])
    for made, group in zip(optimizer.param_groups, groups, strict=True):
        made["lr"] = made["lr"] * group.factor
    return optimizer


def _factors(encoder: Encoder, fine_tuning: FineTuning) -> Iterator[tuple[nn.Parameter, float]]:
    """The towers' parameters, and their share of the learning rate."""
    for tower in encoder.towers():
        for parameter, above in _blocks_above(tower, fine_tuning.layer_decay < 1):
            yield parameter, fine_tuning.tower_lr * fine_tuning.layer_decay**above


def _blocks_above(tower: nn.Module, wanted: bool) -> Iterator[tuple[nn.Parameter, int]]:
    """For each parameter, how many blocks its output passes through, its own included; 0 for all if not `wanted`.

    What stands before a block, such as embeddings or a change of resolution, passes through one more than the block.
    """
    found = blocks(tower) if wanted and any(p.requires_grad for p in tower.parameters()) else []
    if wanted and not found and any(isinstance(p, (nn.Linear, nn.Conv2d)) for p in tower.modules()):
        name = type(getattr(tower, "backbone", tower)).__name__
        raise InputError(
            f"fine_tuning.layer_decay finds no repeated blocks in {name}: leave it at 1, or use another backbone"
        )
    place = {parameter: number for number, block in enumerate(found) for parameter in block.parameters()}
    passed = -1  # the last block that was met, in the order in which modules are registered
    for parameter in tower.parameters():
        passed = max(passed, place.get(parameter, -1))
        if parameter in place:
            yield parameter, len(found) - place[parameter]
        else:
            behind = passed + 1 == len(found)
            yield parameter, 0 if behind else len(found) - passed


def _spared(encoder: Encoder) -> Iterator[nn.Parameter]:
    """What backbones ask not to decay."""
    for tower in encoder.towers():
        for part in tower.modules():
            names = getattr(part, "no_weight_decay", None)
            listed: set[str] = set(names()) if callable(names) else set()
            yield from (p for name, p in part.named_parameters() if name in listed)
            for name, parameter in part.named_parameters(recurse=False):
                if name in ("class_embedding", "cls_token", "position_embeddings"):
                    yield parameter
            for name, child in part.named_children():
                if name in ("position_embedding", "position_embeddings") and isinstance(child, nn.Embedding):
                    yield from child.parameters()
