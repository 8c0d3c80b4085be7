"""Groups parameters by learning rate and weight decay: heads, towers, and the blocks of the towers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from patchword.encoders.base import Encoder
from patchword.encoders.blocks import blocks
from patchword.errors import UserError


@dataclass
class FineTuning:
    """How to train pretrained towers and their heads.

    Args:
        tower_lr: The towers' learning rate, as a factor of the learning rate of the heads and the objective.
        layer_decay: The learning rate of a tower's block, as a factor of the learning rate of the next block. The
            factor is applied once to the last block, once more to the layers before the first block than to that
            block, and not to the last norm (as in BEiT).
        decay_embeddings: Whether weight decay also applies to parameters that a backbone excludes from it: position
            embeddings and class tokens (timm's `no_weight_decay`), and position tables of transformers' models.
        fixed_statistics: Whether batch norms of the encoder normalize with the statistics that they have at the start,
            as in evaluation, and keep them. Their weights and biases are trained.
        start_from: The checkpoint or the folder of a run whose encoder's weights this training starts with. The
            objective starts with its own weights. A training that resumes from a checkpoint does not need it.
    """

    tower_lr: float = 1.0
    layer_decay: float = 1.0
    decay_embeddings: bool = True
    fixed_statistics: bool = False
    start_from: str | None = None

    def __post_init__(self) -> None:
        for name in ("tower_lr", "layer_decay"):
            value = getattr(self, name)
            if not (math.isfinite(value) and 0 < value <= 1):
                raise UserError(f"fine_tuning.{name} must be a factor above 0 and at most 1, not {value}")


@dataclass
class Group:
    """Parameters with one learning rate and one weight decay.

    Attributes:
        names: The parameters' names in the module.
        parameters: The parameters.
        factor: Factor of the learning rate.
        decay: Whether weight decay applies to them.
    """

    names: list[str]
    parameters: list[nn.Parameter]
    factor: float
    decay: bool


def parameter_groups(module: nn.Module, encoder: Encoder, fine_tuning: FineTuning) -> list[Group]:
    """All trainable parameters, each in one group; groups with weight decay come first.

    Weight decay applies to matrices. It does not apply to biases, norms and temperatures, which have fewer than two
    dimensions. `module` contains `encoder`, whose towers and blocks get the learning rates of `fine_tuning`.

    Raises:
        UserError: `layer_decay` is set, but a tower has no blocks.
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
    """Build the optimizer of `groups` with `make`, and scale the learning rate of each group by its factor."""
    no_decay = {"weight_decay": 0.0}
    optimizer = make([{"params": group.parameters, **({} if group.decay else no_decay)} for group in groups])
    for made, group in zip(optimizer.param_groups, groups, strict=True):
        made["lr"] = made["lr"] * group.factor
    return optimizer


def _factors(encoder: Encoder, fine_tuning: FineTuning) -> Iterator[tuple[nn.Parameter, float]]:
    """The towers' parameters with their factors of the learning rate."""
    for tower in encoder.towers():
        for parameter, above in _blocks_above(tower, fine_tuning.layer_decay < 1):
            yield parameter, fine_tuning.tower_lr * fine_tuning.layer_decay**above


def _blocks_above(tower: nn.Module, wanted: bool) -> Iterator[tuple[nn.Parameter, int]]:
    """For each parameter, the number of blocks from its own block to the output; 0 for all parameters if not `wanted`.

    Layers before a block, such as embeddings or a change of resolution, have one more than that block.
    """
    found = blocks(tower) if wanted and any(p.requires_grad for p in tower.parameters()) else []
    if wanted and not found and any(isinstance(p, (nn.Linear, nn.Conv2d)) for p in tower.modules()):
        name = type(getattr(tower, "backbone", tower)).__name__
        raise UserError(
            f"fine_tuning.layer_decay needs repeated blocks, but {name} has none: set it to 1, or use another backbone"
        )
    place = {parameter: number for number, block in enumerate(found) for parameter in block.parameters()}
    passed = -1  # the last block so far, in the order in which modules are registered
    for parameter in tower.parameters():
        passed = max(passed, place.get(parameter, -1))
        if parameter in place:
            yield parameter, len(found) - place[parameter]
        else:
            yield parameter, 0 if passed + 1 == len(found) else len(found) - passed


def _spared(encoder: Encoder) -> Iterator[nn.Parameter]:
    """The parameters that backbones exclude from weight decay."""
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
