"""Measure the memory that the texts of other ranks need, with all_gather and in a ring, on 2, 4 and 8 processes.

Run it as `python benchmarks/ring.py`. Every process has a batch of random features, and all processes use gloo on one
CPU. The memory is the peak of a forward and backward pass of the objective in the first process, without the features.
The time is that of the slowest process. All processes share the cores, so only the ratio of two modes is meaningful.
"""

from __future__ import annotations

import argparse
import os
import socket
import time
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import torch.distributed as dist
from torch import multiprocessing

from patchword import Images, Texts, distributed
from patchword.bench.measure import give_back, reset_peak, resident
from patchword.commands.objective_names import OURS, build


def measure(rank: int, ranks: int, port: int, objective: str, how: Any, sizes: argparse.Namespace, out: Any) -> None:
    """Run one process. The first process puts its peak in bytes and the seconds of a pass into `out`."""
    give_back()
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    torch.manual_seed(rank)
    shape = sizes.batch, sizes.patches, sizes.tokens, sizes.dim
    b, p, length, d = shape
    images = Images(torch.randn(b, d).requires_grad_(), torch.randn(b, p, d).requires_grad_(), (1, p))
    mask = torch.arange(length) < torch.randint(1, length + 1, (b, 1))
    texts = Texts(torch.randn(b, d).requires_grad_(), torch.randn(b, length, d).requires_grad_(), mask)
    loss = build(OURS.get(objective, objective))
    torch.manual_seed(0)
    loss.build(d)
    seconds = peak = 0.0
    for _ in range(2):  # the first pass allocates memory that is kept
        dist.barrier()
        before, start = reset_peak() or 0, time.perf_counter()
        with distributed.exchange(how):
            torch.stack(list(loss(images, texts).values())).sum().backward()
        dist.barrier()
        seconds, peak = time.perf_counter() - start, (resident() or 0) - before
    if rank == 0:
        out.put((peak, seconds))
    dist.destroy_process_group()


def main() -> None:
    """Measure all modes, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objectives", nargs="+", default=["SigLIP", "FILIP", "PACL", "GLoRIA", "FLAIR"])
    parser.add_argument("--ranks", nargs="+", type=int, default=[2, 4, 8])
    parser.add_argument("--batch", type=int, default=32, help="number of pairs per process")
    parser.add_argument("--patches", type=int, default=196)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--dim", type=int, default=256)
    options = parser.parse_args()
    print(f"{options.batch} pairs each, P={options.patches} L={options.tokens} D={options.dim}, float32, gloo on a CPU")
    print(f"{'':<8} {'':<10}" + "".join(f"{f'{n} processes':>22}" for n in options.ranks))
    for objective in options.objectives:
        for how in ("all_gather", "ring"):
            cells = []
            for ranks in options.ranks:
                with socket.socket() as free:
                    free.bind(("127.0.0.1", 0))
                    port = free.getsockname()[1]
                out = multiprocessing.get_context("spawn").SimpleQueue()
                multiprocessing.spawn(measure, (ranks, port, objective, how, options, out), nprocs=ranks)
                peak, seconds = out.get()
                cells.append(f"{peak / 2**20:9.1f} MiB {seconds:6.2f} s")
            print(f"{objective if how == 'all_gather' else '':<8} {how:<10}" + "".join(f"{cell:>22}" for cell in cells))


if __name__ == "__main__":
    main()
