"""The processes of `patchword verify` and `check`, which are started here or by torchrun or SLURM."""

from __future__ import annotations

import datetime
import os
import pickle
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn as start

from patchword.errors import UserError

if TYPE_CHECKING:
    from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment

TIMEOUT = datetime.timedelta(minutes=5)  # timeout of one collective operation


def launcher() -> ClusterEnvironment | None:
    """Return the launcher that started this process as one of several; None if there is no launcher."""
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    for environment in (TorchElasticEnvironment, SLURMEnvironment):
        if environment.detect() and (found := environment()).world_size() > 1:
            return found
    return None


def join(environment: ClusterEnvironment, device: str) -> str:
    """Join the process group, and return the device of this process."""
    os.environ.setdefault("MASTER_ADDR", environment.main_address)
    os.environ.setdefault("MASTER_PORT", str(environment.main_port))
    return _join(environment.global_rank(), environment.world_size(), environment.local_rank(), device)


def spawn(work: Callable[..., Any], *arguments: Any, ranks: int, device: str = "cpu") -> list[Any]:
    """[work(device, *arguments) for each rank], computed by new processes on this machine that are joined in a group.

    Raises:
        UserError: If there are fewer GPUs than processes.
    """
    if device.startswith("cuda") and ranks > torch.cuda.device_count():
        raise UserError(f"--ranks {ranks}: this machine has {torch.cuda.device_count()} GPU(s); use --device cpu")
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        start(_spawned, (work, arguments, ranks, device, port, folder), nprocs=ranks)  # If one fails, all are ended.
        return [pickle.loads(Path(folder, str(rank)).read_bytes()) for rank in range(ranks)]


def _spawned(
    rank: int, work: Callable[..., Any], arguments: tuple[Any, ...], ranks: int, device: str, port: int, folder: str
) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    device = _join(rank, ranks, rank, device)
    Path(folder, str(rank)).write_bytes(pickle.dumps(work(device, *arguments)))
    dist.destroy_process_group()


def _join(rank: int, ranks: int, local_rank: int, device: str) -> str:
    on_gpu = device.startswith("cuda")
    if on_gpu:
        device = f"cuda:{local_rank}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo", rank=rank, world_size=ranks, timeout=TIMEOUT)
    return device
