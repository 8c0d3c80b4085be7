"""Add low-rank adapters (LoRA, arXiv 2106.09685) to a backbone, with the library peft."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from patchword.encoders.blocks import blocks
from patchword.errors import UserError

Backbone = TypeVar("Backbone", bound=nn.Module)


@dataclass(frozen=True)
class Lora:
    """Replace W by W + (alpha / rank) B A, where W is frozen and the low-rank matrices A and B are trained.

    B is initialized to zero.

    Args:
        rank: The rank of B A.
        alpha: The weight of B A, multiplied by the rank.
        dropout: The dropout rate of the input of A.
        targets: Suffixes of the names of the layers that get an adapter, such as `[q_proj, v_proj]` or `[qkv]`. null
            selects every linear layer of the backbone's blocks.
    """

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0
    targets: list[str] | None = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"lora.rank must be 1 or more, not {self.rank}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"lora.dropout must be at least 0 and less than 1, not {self.dropout}")


def add_adapters(backbone: nn.Module, lora: Lora | None, freeze: bool) -> None:
    """Add adapters to `backbone` in place, and freeze its original weights. If `lora` is None, do nothing.

    Raises:
        UserError: If `lora` and `freeze` are both set, peft is not installed, or no layer is selected.
    """
    if lora is None:
        return
    if freeze:
        raise UserError(
            "freeze and lora cannot be combined: remove freeze (lora freezes all weights except its adapters)"
        )
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError("lora needs the library peft: pip install 'patchword[lora]'") from error

    targets = _targets(backbone, lora.targets)
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets)
    inject_adapter_in_model(config, backbone)


def merged(backbone: Backbone) -> Backbone:
    """A copy of `backbone` with the adapters merged into the weights."""
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
            raise UserError(f"lora finds no linear layers in the blocks of {name}: set lora.targets to names of layers")
        return found
    found = [key for key in layers if any(key == end or key.endswith(f".{end}") for end in wanted)]
    for end in wanted:
        if not any(key == end or key.endswith(f".{end}") for key in found):
            known = ", ".join(dict.fromkeys(key.rpartition(".")[2] for key in layers))
            raise UserError(f"lora.targets: {name} has no layer {end!r}; its layers are {known}")
    return found
