"""The property that training on several processes equals training on one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from patchword import contrast, distributed
from patchword.contract import sample
from patchword.contract.properties import Build
from patchword.contract.sample import first_tokens, padded
from patchword.contract.values import Values, budget, losses, require_same
from patchword.features import Images, Texts, map_tensors


def ranks(
    build: Build,
    on_ranks: Callable[..., list[Values]],
    size: int = 2,
    how: distributed.Exchange = "all_gather",
    mask: bool = False,
    tile: int = contrast.BUDGET,
) -> None:
    """Two processes with two pairs each give the loss and all gradients of one process with four.

    The captions of the first rank are padded to a greater length than those of the others.

    Args:
        build: Builds the objective; it is sent to other processes.
        on_ranks: Function that returns [function(rank, *args) for each rank], computed in processes joined by gloo.
        size: The number of processes.
        how: How the processes exchange texts.
        mask: Whether the images differ in shape and are padded.
        tile: The size of a tile of the processes, so that the texts of a rank are sent in parts.
    """
    images, texts = _shared(size, mask)
    expected = losses(build(torch.float64), images, texts)
    for found in on_ranks(_of_rank, build, how, mask, tile, ranks=size):
        require_same(found, expected, f"on {size} processes (not one with all pairs)")


def _of_rank(rank: int, build: Build, how: distributed.Exchange, mask: bool, tile: int) -> Values:
    """The losses and gradients that DDP would leave: those of all ranks' slices, and the averages of the others."""
    size = dist.get_world_size()
    images, texts = _shared(size, mask)
    own = slice(2 * rank, 2 * rank + 2)
    images, texts = map_tensors(images[own], _leaf), texts[own]
    # Rank 0 has the longest caption; the others have less padding.
    texts = map_tensors(first_tokens(texts, 4 if rank == 0 else 3), _leaf)
    with distributed.exchange(how), budget(tile):
        found = losses(build(torch.float64), images, texts)
    name = "the gradient of texts.tokens"
    found[name] = torch.nn.functional.pad(found[name], (0, 0, 0, 4 - texts.mask.shape[1]))
    sides = ("the gradient of images.", "the gradient of texts.")
    return {
        name: distributed.gather(x / size) if name.startswith(sides) else distributed.gather(x[None]).mean(0)
        for name, x in found.items()
    }


def _shared(size: int, mask: bool) -> tuple[Images, Texts]:
    """Two pairs for each rank. Later ranks have shorter captions, so that ranks have unequal numbers of tokens."""
    images, texts = sample.pairs(batch=2 * size, dtype=torch.float64)
    assert texts.ids is not None
    short = texts.mask.clone()
    short[2:, 3:] = False
    short[3, 1:] = False
    texts = replace(texts, mask=short, ids=texts.ids.masked_fill(~short, -1))
    return padded(images, (4, 5)) if mask else images, texts


def _leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_(x.requires_grad)
