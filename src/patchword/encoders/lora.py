"""Low-rank adapters (LoRA, arXiv 2106.09685) in a backbone, by the library peft."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from patchword.encoders.blocks import blocks
from patchword.errors import InputError

Backbone = TypeVar("Backbone", bound=nn.Module)


@dataclass(frozen=True)
class Lora:
    """Train W + (alpha / rank) B A in place of W, where W stays as it is and B A has the given rank; B begins at zero.

    Args:
        rank: Of B A.
        alpha: Its weight, times the rank.
        dropout: Share of the input of A that is dropped in training.
        targets: Ends of the names of the layers that get an adapter, such as `[q_proj, v_proj]` or `[qkv]`; null for
            every linear layer of the backbone's blocks.
    """

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0
    targets: list[str] | None = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"lora.rank must be 1 or more, not {self.rank}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"lora.dropout is a share of 0 or more, below 1, not {self.dropout}")


def add_adapters(backbone: nn.Module, lora: Lora | None, freeze: bool) -> None:
    """Put adapters into `backbone`, in place, and freeze all its own weights; nothing without `lora`.

    Args:
        backbone: Whose layers get adapters.
        lora: Which ones, and which layers.
        freeze: Whether the user wants nothing to train.

    Raises:
        InputError: If nothing shall train, peft is not installed, or no layer is meant.
    """
    if lora is None:
        return
    if freeze:
        raise InputError(
            "freeze lets nothing train, and lora trains adapters: leave out freeze (lora freezes the rest)"
        )
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise InputError("lora needs the library peft: pip install 'patchword[lora]'") from error

    targets = _targets(backbone, lora.targets)
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets)
    inject_adapter_in_model(config, backbone)


def merged(backbone: Backbone) -> Backbone:
    """A copy of `backbone` whose adapters have been added to the weights; without adapters, the copy."""
    made = deepcopy(backbone)
    layers = {name: part for name, part in made.named_modules() if hasattr(part, "lora_A")}
    for name, layer in layers.items():
        layer.merge()
        made.set_submodule(name, layer.get_base_layer())
    return made.requires_grad_(False)


def _targets(backbone: nn.Module, wanted: list[str] | None) -> list[str]:
    """The names of the layers that get an adapter."""
    name = type(backbone).__name__
    layers = [key for key, part in backbone.named_modules() if isinstance(part, (nn.Linear, nn.Conv2d))]
    if wanted is None:
        inside = {part for block in blocks(backbone) for part in block.modules() if isinstance(part, nn.Linear)}
        found = [key for key, part in backbone.named_modules() if part in inside]
        if not found:
            raise InputError(f"lora finds no linear layers in the blocks of {name}: name layers in lora.targets")
        return found
    found = [key for key in layers if any(key == end or key.endswith(f".{end}") for end in wanted)]
    for end in wanted:
        if not any(key == end or key.endswith(f".{end}") for key in found):
            known = ", ".join(dict.fromkeys(key.rpartition(".")[2] for key in layers))
            raise InputError(f"lora.targets: {name} has no layer {end!r}; it has {known}")
    return found
