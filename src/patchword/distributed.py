"""Other ranks' values, with exact gradients. On one process every function here is the identity.

The rule that makes N ranks with b pairs equal one process with N*b pairs: every rank computes the loss of its own
b pairs from everybody's values, gradients flow back through the gather to the rank that owns each value, and DDP's
mean over ranks does the rest.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from patchword.features import Images, Texts

Side = TypeVar("Side", Tensor, Images, Texts)


def world_size() -> int:
    """The number of ranks; 1 when torch.distributed is not running."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 when torch.distributed is not running."""
    return dist.get_rank() if world_size() > 1 else 0


def gather(side: Side) -> Side:
    """`side` of all ranks, concatenated in rank order along the batch axis, differentiable.

    All ranks must hold the same batch size. Caption lengths may differ: tokens are padded (mask False) to
    the longest caption of any rank.
    """
    if world_size() == 1:
        return side
    if isinstance(side, Images):
        return Images(gather(side.pooled), gather(side.patches), side.grid)
    if isinstance(side, Texts):
        side = _pad(side, _longest(side))
        phrases = None if side.phrases is None else gather(side.phrases)
        return Texts(gather(side.pooled), gather(side.tokens), gather(side.mask), phrases)
    return _Gather.apply(side)


def logsumexp(x: Float[Tensor, " N"]) -> Float[Tensor, " b"]:
    """log sum_r exp(x^r) over ranks r, of this rank's share of the N = b * world_size() entries; differentiable."""
    return x if world_size() == 1 else own(gather(x[None]).logsumexp(0))


def own(x: Tensor) -> Tensor:
    """This rank's share of what `gather` has concatenated."""
    share = len(x) // world_size()
    return x[rank() * share : (rank() + 1) * share]


def maximum(x: Tensor) -> Tensor:
    """The largest of all ranks' `x`, entry by entry, without gradient."""
    x = x.detach()
    if world_size() > 1:
        x = x.clone()
        dist.all_reduce(x, op=dist.ReduceOp.MAX)
    return x


def mean(x: Tensor) -> Tensor:
    """`x` averaged over ranks, without gradient: for counts that a local mean must share."""
    if world_size() == 1:
        return x.detach()
    total = x.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def _longest(texts: Texts) -> int:
    length = torch.tensor(texts.mask.shape[1], device=texts.mask.device)
    dist.all_reduce(length, op=dist.ReduceOp.MAX)
    return int(length)


def _pad(texts: Texts, length: int) -> Texts:
    missing = length - texts.mask.shape[1]
    tokens = pad(texts.tokens, (0, 0, 0, missing))
    phrases = None if texts.phrases is None else pad(texts.phrases, (0, missing), value=-1)
    return Texts(texts.pooled, tokens, pad(texts.mask, (0, missing)), phrases)


class _Gather(torch.autograd.Function):
    """all_gather whose backward adds up every rank's gradient of this rank's slice.

    Written out because torch's own differentiable gathers are deprecated, and one of them returns wrong
    gradients on gloo when the incoming gradient is not contiguous.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient[rank() * ctx.rows : (rank() + 1) * ctx.rows]
