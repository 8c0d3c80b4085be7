"""Exchange of values between ranks, with exact gradients. On one process every function here is the identity.

N ranks with b pairs each equal one process with N*b pairs, because every rank computes the loss of its own b pairs from
the values of all ranks, gradients flow back through the exchange to the rank that owns each value, and DDP averages
over ranks.

Values are exchanged all at once (`gather`), or one rank at a time (`rotate`), so that only the values of two ranks are
in memory. `exchange` chooses which of the two `visit` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor

from patchword.features import Images, Texts, map_tensors

Side = TypeVar("Side", Tensor, Images, Texts)
Exchange = Literal["all_gather", "ring"]

_exchange: Exchange = "all_gather"
_alone = False


@contextmanager
def exchange(how: Exchange) -> Iterator[None]:
    """Inside this context, losses get other ranks' values all at once (`all_gather`) or one rank at a time (`ring`)."""
    global _exchange
    before, _exchange = _exchange, how
    try:
        yield
    finally:
        _exchange = before


@contextmanager
def alone() -> Iterator[None]:
    """Inside this context, this process is treated as the only rank, and every function here is the identity."""
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
    """Whether there are other ranks and values are exchanged one rank at a time."""
    return _exchange == "ring" and world_size() > 1


def rank() -> int:
    """This process's rank; 0 when torch.distributed is not running."""
    return dist.get_rank() if world_size() > 1 else 0


def gather(side: Side) -> Side:
    """`side` of all ranks, concatenated in rank order along the batch axis. Differentiable.

    All ranks must have the same batch size. Caption lengths may differ: tokens are padded (mask False) to
    the longest caption of any rank.
    """
    if world_size() == 1:
        return side
    return _Gather.apply(side) if isinstance(side, Tensor) else map_tensors(as_long(side), _Gather.apply)


def rotate(side: Side, places: int) -> Side:
    """`side` of the rank `places` after this one, in a circle. Differentiable.

    All ranks must call this function, with `side` of the same shape (see `as_long`).
    """
    if places % world_size() == 0:
        return side
    if isinstance(side, Tensor):
        return _Rotate.apply(side, places)
    return map_tensors(side, lambda x: _Rotate.apply(x, places))


def visit(side: Side) -> Iterator[Side]:
    """`side` of all ranks: gathered in one step, or, in a ring, one rank after the other, starting with this rank."""
    if not in_ring():
        yield gather(side)
        return
    side = as_long(side)
    for places in range(world_size()):
        yield rotate(side, places)


def in_rank_order(x: Tensor) -> Tensor:
    """Reorder `x`, which was concatenated in the order of `visit`, to the order of `gather`."""
    return x.roll(rank() * len(x) // world_size(), 0) if in_ring() else x


def logsumexp(x: Float[Tensor, "N ..."]) -> Float[Tensor, "b ..."]:
    """log sum_r exp(x^r) over ranks r, for this rank's share of the N = b * world_size() entries. Differentiable."""
    return x if world_size() == 1 else _Transpose.apply(x.unflatten(0, (world_size(), -1))).logsumexp(0)


def amax(x: Float[Tensor, " N"]) -> Float[Tensor, " b"]:
    """max_r x^r over ranks r, for this rank's share of the N = b * world_size() entries. Differentiable."""
    return x if world_size() == 1 else _Transpose.apply(x.unflatten(0, (world_size(), -1))).amax(0)


def as_long(side: Side) -> Side:
    """`side`, with captions padded (mask False) to the longest one of any rank, and levels of phrases to the most.

    Other ranks cannot encode its texts again.
    """
    if not isinstance(side, Texts) or world_size() == 1:
        return side
    levels = 0 if side.phrases is None else side.phrases.shape[1]
    sizes = maximum(torch.tensor([side.mask.shape[1], levels], device=side.mask.device))
    return replace(side.padded(*sizes.tolist()), masked=None)


def own(x: Tensor) -> Tensor:
    """This rank's share of `x`, which `gather` concatenated."""
    share = len(x) // world_size()
    return x[rank() * share : (rank() + 1) * share]


def maximum(x: Tensor) -> Tensor:
    """The element-wise maximum of `x` over all ranks, without gradient."""
    x = x.detach()
    if world_size() > 1:
        x = x.clone()
        dist.all_reduce(x, op=dist.ReduceOp.MAX)
    return x


def mean(x: Tensor) -> Tensor:
    """`x` averaged over ranks, without gradient, such as a count by which every rank divides its sum."""
    if world_size() == 1:
        return x.detach()
    total = x.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def mean_count(mask: Bool[Tensor, "*n"], dtype: torch.dtype) -> Float[Tensor, ""]:
    """The mean over ranks of the number of True entries, by which every rank divides a sum over its own entries.

    If no rank has such an entry, the sum is zero, and this is the value for one entry in all ranks together.
    """
    return mean(mask.sum().to(dtype)).clamp_min(1 / world_size())


class _Gather(torch.autograd.Function):
    """all_gather whose backward pass sums all ranks' gradients of this rank's slice.

    torch's own differentiable gathers are deprecated, and one of them returns wrong gradients on gloo if the incoming
    gradient is not contiguous.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return own(gradient)


class _Rotate(torch.autograd.Function):
    """Every rank gets the value of the rank `places` after it. In the backward pass gradients take the reverse path."""

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
    """Row r of rank q becomes row q of rank r, by all-to-all."""

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
