"""The processes of `patchword verify`, which are started here on one machine or by torchrun or SLURM."""

from __future__ import annotations

import datetime
import json
import os
import socket
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch.multiprocessing.spawn import spawn as start

from patchword.errors import UserError
from patchword.verify.modes import Difference, differences

TIMEOUT = datetime.timedelta(minutes=5)  # timeout of one collective operation


def launcher() -> ClusterEnvironment | None:
    """Return the launcher that started this process as one of several; None if there is no launcher."""
    for environment in (TorchElasticEnvironment, SLURMEnvironment):
        if environment.detect() and (found := environment()).world_size() > 1:
            return found
    return None


def join(environment: ClusterEnvironment, device: str) -> str:
    """Join the process group, and return the device of this process."""
    os.environ.setdefault("MASTER_ADDR", environment.main_address)
    os.environ.setdefault("MASTER_PORT", str(environment.main_port))
    return _join(environment.global_rank(), environment.world_size(), environment.local_rank(), device)


def spawn(names: list[str], ranks: int, batch_size: int, device: str) -> list[Difference]:
    """Start new processes on this machine, and return the differences that they find.

    Raises:
        UserError: If there are fewer GPUs than processes.
    """
    if device.startswith("cuda") and ranks > torch.cuda.device_count():
        raise UserError(f"--ranks {ranks}: this machine has {torch.cuda.device_count()} GPU(s); use --device cpu")
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        file = Path(folder) / "differences.json"
        arguments = (names, ranks, batch_size, device, port, file)
        start(_spawned, arguments, nprocs=ranks)  # If one process fails, all of them are ended.
        return [Difference(**found) for found in json.loads(file.read_text())]


def _spawned(rank: int, names: list[str], ranks: int, batch_size: int, device: str, port: int, file: Path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    device = _join(rank, ranks, rank, device)
    found = [asdict(difference) for difference in differences(names, ranks, batch_size, device)]
    if rank == 0:
        file.write_text(json.dumps(found))
    dist.destroy_process_group()


def _join(rank: int, ranks: int, local_rank: int, device: str) -> str:
    on_gpu = device.startswith("cuda")
    if on_gpu:
        device = f"cuda:{local_rank}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo", rank=rank, world_size=ranks, timeout=TIMEOUT)
    return device
