"""Other ranks' values, with exact gradients. On one process every function here is the identity.

The rule that makes N ranks with b pairs equal one process with N*b pairs: every rank computes the loss of its own
b pairs from everybody's values, gradients flow back through the exchange to the rank that owns each value, and DDP's
mean over ranks does the rest.

Values are exchanged all at once (`gather`), or one rank's at a time (`rotate`), which holds two ranks' in memory
instead of all. `visit` does the one or the other, as `exchange` says.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from patchword.features import Images, Texts, map_tensors

Side = TypeVar("Side", Tensor, Images, Texts)
Exchange = Literal["gather", "ring"]

_exchange: Exchange = "gather"
_alone = False


@contextmanager
def exchange(how: Exchange) -> Iterator[None]:
    """In this block losses get other ranks' values all at once (`gather`), or one rank's at a time (`ring`)."""
    global _exchange
    before, _exchange = _exchange, how
    try:
        yield
    finally:
        _exchange = before


@contextmanager
def alone() -> Iterator[None]:
    """In this block there is no other rank: every function here is the identity."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def world_size() -> int:
    """The number of ranks; 1 when torch.distributed is not running."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() and not _alone else 1


def in_ring() -> bool:
    """Whether values are exchanged one rank's at a time, and there is another rank."""
    return _exchange == "ring" and world_size() > 1


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
    return _Gather.apply(side) if isinstance(side, Tensor) else map_tensors(as_long(side), _Gather.apply)


def rotate(side: Side, places: int) -> Side:
    """`side` of the rank that comes `places` after this one, round in a circle; differentiable.

    All ranks must call it, with `side` of one shape (`as_long`).
    """
    if places % world_size() == 0:
        return side
    if isinstance(side, Tensor):
        return _Rotate.apply(side, places)
    return map_tensors(side, lambda x: _Rotate.apply(x, places))


def visit(side: Side) -> Iterator[Side]:
    """`side` of all ranks: once and gathered, or, in a ring, one after the other from this rank on."""
    if not in_ring():
        yield gather(side)
        return
    side = as_long(side)
    for places in range(world_size()):
        yield rotate(side, places)


def in_rank_order(x: Tensor) -> Tensor:
    """What was concatenated along `visit`, as `gather` would have concatenated it."""
    return x.roll(rank() * len(x) // world_size(), 0) if in_ring() else x


def logsumexp(x: Float[Tensor, " N"]) -> Float[Tensor, " b"]:
    """log sum_r exp(x^r) over ranks r, of this rank's share of the N = b * world_size() entries; differentiable."""
    return x if world_size() == 1 else _Transpose.apply(x.unflatten(0, (world_size(), -1))).logsumexp(0)


def as_long(side: Side) -> Side:
    """`side`, its captions padded (mask False) to the longest of any rank."""
    return _pad(side, _longest(side)) if isinstance(side, Texts) and world_size() > 1 else side


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


class _Rotate(torch.autograd.Function):
    """Every rank gets the value of the rank `places` after it; in the backward pass gradients go the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: int) -> Tensor:
        ctx.places = places
        return _from_rank_after(x, places)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _from_rank_after(gradient, -ctx.places), None


def _from_rank_after(x: Tensor, places: int) -> Tensor:
    received = torch.empty_like(x, memory_format=torch.contiguous_format)
    sending = dist.P2POp(dist.isend, x.contiguous(), (rank() - places) % world_size())
    receiving = dist.P2POp(dist.irecv, received, (rank() + places) % world_size())
    for work in dist.batch_isend_irecv([sending, receiving]):
        work.wait()
    return received


class _Transpose(torch.autograd.Function):
    """Row r of rank q becomes row q of rank r."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        transposed = torch.empty_like(x, memory_format=torch.contiguous_format)
        dist.all_to_all_single(transposed, x.contiguous())
        return transposed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        transposed = torch.empty_like(gradient, memory_format=torch.contiguous_format)
        dist.all_to_all_single(transposed, gradient.contiguous())
        return transposed
