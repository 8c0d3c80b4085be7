"""FSDP2: parameters, gradients and optimiser states of encoder and objective, a share on every rank."""

from __future__ import annotations

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from patchword.encoders.base import Encoder
from patchword.encoders.blocks import blocks
from patchword.errors import InputError
from patchword.objective import Objective


def shard(encoder: Encoder, objective: Objective, mesh: DeviceMesh) -> None:
    """Split every parameter over the ranks of `mesh`, in place; a block's are whole while it runs.

    The blocks of the towers are gathered one at a time, the rest of the encoder and the objective once a step.

    Args:
        encoder: The pair of towers.
        objective: The objective.
        mesh: The devices of Lightning's `ModelParallelStrategy`, or one dimension of them.

    Raises:
        InputError: If the mesh has a tensor-parallel dimension of more than one device.
    """
    if mesh.ndim == 2:
        if mesh["tensor_parallel"].size() > 1:
            raise InputError(
                "encoders are sharded over data-parallel devices only: set the strategy's tensor_parallel_size to 1 "
                "and its data_parallel_size to the number of devices"
            )
        mesh = mesh["data_parallel"]
    if isinstance(encoder, FSDPModule):
        return
    for block in blocks(encoder):
        fully_shard(block, mesh=mesh)
    fully_shard(encoder, mesh=mesh)
    fully_shard(objective, mesh=mesh)
    for method in ("encode_images", "encode_texts"):
        register_fsdp_forward_method(encoder, method)
    for method in ("score", "text_score", "align"):
        register_fsdp_forward_method(objective, method)
