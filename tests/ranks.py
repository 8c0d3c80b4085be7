"""Run a function on gloo processes that live as long as the test session."""

from __future__ import annotations

import atexit
import functools
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_ranks(function: Callable[..., Any], *args: Any, ranks: int = 2) -> list[Any]:
    """[function(rank, *args) for each rank], computed in processes joined by gloo."""
    results = _pool(ranks).starmap(_call, [(function, *args)] * ranks, chunksize=1)
    return [result for _, result in sorted(results, key=lambda pair: pair[0])]


@contextmanager
def as_device(rank: int, ranks: int = 2) -> Iterator[dict[str, Any]]:
    """Options of a `Trainer` that is one device's, in a process of `on_ranks`; it neither starts nor joins another."""
    before = dict(os.environ)
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(ranks))
    try:
        with warnings.catch_warnings(action="ignore"):
            yield {"strategy": "ddp", "devices": ranks}
    finally:
        os.environ.clear()
        os.environ.update(before)


@functools.cache
def _pool(ranks: int) -> Any:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.get_context("spawn")
    pool = context.Pool(ranks)
    pool.starmap(_join, [(rank, ranks, port) for rank in range(ranks)], chunksize=1)
    atexit.register(pool.terminate)
    return pool


def _call(function: Callable[..., Any], *args: Any) -> tuple[int, Any]:
    dist.barrier()  # neither process can take both calls
    return dist.get_rank(), function(dist.get_rank(), *args)


def _join(rank: int, ranks: int, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
