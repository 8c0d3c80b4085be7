"""Which parameters of a backbone train: none if it is frozen, and only those that its output depends on."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Freezable(nn.Module):
    """A module that can be frozen for good: its parameters take no gradient and it stays in eval mode."""

    frozen: bool = False

    def train(self, mode: bool = True) -> Freezable:
        """Sets training mode, except on a frozen module, which stays in eval mode."""
        return super().train(mode and not self.frozen)

    def settle(self, outputs: Iterable[Tensor], freeze: bool) -> None:
        """Decides what trains, once, at the end of a constructor.

        Optimizers and distributed training want no parameter without a gradient: poolers, mask tokens or
        logit scales that play no part in `outputs` stop taking one.

        Args:
            outputs: What a forward pass with gradients gave.
            freeze: Whether nothing trains at all.
        """
        used = leaves(outputs)
        for parameter in self.parameters():
            parameter.requires_grad_(parameter in used and not freeze)
        self.frozen = freeze
        self.train()


def leaves(outputs: Iterable[Tensor]) -> set[Tensor]:
    """The parameters in the graph behind `outputs`; tensors hash by identity."""
    stack = [output.grad_fn for output in outputs]
    seen = set()
    leaves = set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(variable := getattr(node, "variable", None), torch.Tensor):  # only the nodes of leaves have one
            leaves.add(variable)
        stack += [parent for parent, _ in node.next_functions]
    return leaves
