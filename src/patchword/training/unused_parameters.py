"""Freezes parameters that the loss does not depend on.

Distributed training would wait for their gradients, and optimizers would decay them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from patchword import distributed
from patchword.encoders.frozen import leaves
from patchword.features import Masked

if TYPE_CHECKING:
    from patchword.module import AlignmentModule


def freeze_unused(module: AlignmentModule) -> list[str]:
    """Freeze the parameters of `module` that its loss does not depend on, and return their names.

    They are found in the graph of the loss of two blank images with all optional parts. Weights, statistics and the
    random state do not change. A module that is sharded has already been processed and is not changed.
    """
    if any(isinstance(p, DTensor) for p in module.parameters()):
        return []
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    modes = {part: part.training for part in module.modules()}
    with torch.enable_grad(), torch.random.fork_rng(), distributed.alone():
        module.eval()
        pixels = torch.zeros(2, 3, *module.encoder.image_size, dtype=torch.uint8, device=module.device)
        images, (texts, tokens) = module.encoder.encode_images(pixels), module.encode_texts(["a", "a a"])
        others, shares = texts.pooled[:, None], torch.ones_like(images.patches[:, None, :, 0])
        masked = Masked(torch.arange(2, device=module.device), lambda at, _: images.pooled.detach()[at])
        images = replace(images, negatives=others, regions=shares, region_texts=others, masked=masked)
        images = replace(images, views=images.pooled[:, None], teacher=others.detach())
        texts = replace(texts, ids=tokens.ids.masked_fill(~tokens.mask, -1), masked=masked)
        texts = replace(texts, teacher=texts.pooled.detach())
        used = leaves(module.objective(images, texts).values())
    for part, training in modes.items():
        part.training = training
    unused = [name for name, p in trainable.items() if p not in used]
    for name in unused:
        trainable[name].requires_grad_(False)
    return unused


def summary(names: list[str], root: nn.Module) -> str:
    """List parameters in one line; a module whose parameters are all listed is named instead of them."""
    wanted, found = set(names), []
    for name in names:
        parents = [name.rsplit(".", depth)[0] for depth in range(name.count("."), 0, -1)]
        whole = (p for p in parents if {f"{p}.{n}" for n, _ in root.get_submodule(p).named_parameters()} <= wanted)
        found.append(next(whole, name))
    return ", ".join(dict.fromkeys(found))
