"""Choose the trained parameters of a backbone: none if it is frozen, otherwise those that its output depends on."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Freezable(nn.Module):
    """A module that can be frozen permanently: its parameters get no gradient, and it remains in eval mode."""

    frozen: bool = False

    def train(self, mode: bool = True) -> Freezable:
        """Set training mode. A frozen module remains in eval mode."""
        return super().train(mode and not self.frozen)

    def settle(self, outputs: Iterable[Tensor], freeze: bool) -> None:
        """Set `requires_grad` of all parameters. Call it once, at the end of a constructor.

        Optimizers and distributed training expect every parameter to have a gradient. Parameters that `outputs` do not
        depend on, such as poolers, mask tokens and logit scales, are therefore not trained. `outputs` come from a
        forward pass with gradients. With `freeze`, no parameter is trained.
        """
        used = leaves(outputs)
        for parameter in self.parameters():
            parameter.requires_grad_(parameter in used and not freeze)
        self.frozen = freeze
        self.train()


def leaves(outputs: Iterable[Tensor]) -> set[Tensor]:
    """The parameters in the autograd graph of `outputs`. Tensors are hashed by identity."""
    stack = [output.grad_fn for output in outputs]
    seen, leaves = set(), set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(variable := getattr(node, "variable", None), torch.Tensor):  # only leaf nodes have this attribute
            leaves.add(variable)
        stack += [parent for parent, _ in node.next_functions]
    return leaves
