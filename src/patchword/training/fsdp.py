"""FSDP2: splits the parameters, gradients and optimizer states of encoder and objective over all ranks."""

from __future__ import annotations

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from patchword.encoders.base import Encoder
from patchword.encoders.blocks import blocks
from patchword.errors import UserError
from patchword.objective import Objective


def shard(encoder: Encoder, objective: Objective, mesh: DeviceMesh, teacher: Encoder | None = None) -> None:
    """Split every parameter over the ranks of `mesh`, in place.

    The parameters of a tower's block are gathered while that block runs. The other parameters of the encoder and those
    of the objective are gathered once per step. `mesh` is the device mesh of Lightning's `ModelParallelStrategy`, or
    one dimension of it. A teacher, which is a copy of the encoder, is split in the same way, so that every rank
    averages its own parts. It has no backward pass, after which its parameters would be split again.

    Raises:
        UserError: If the mesh has a tensor-parallel dimension of more than one device.
    """
    if mesh.ndim == 2:
        if mesh["tensor_parallel"].size() > 1:
            raise UserError(
                "encoders can be sharded over data-parallel devices only: set the strategy's tensor_parallel_size to 1 "
                "and its data_parallel_size to the number of devices"
            )
        mesh = mesh["data_parallel"]
    if isinstance(encoder, FSDPModule):
        return
    for part in (encoder,) if teacher is None else (encoder, teacher):
        for block in blocks(part):
            fully_shard(block, mesh=mesh)
        fully_shard(part, mesh=mesh, reshard_after_forward=True if part is teacher else None)
        for method in ("encode_images", "encode_texts"):
            register_fsdp_forward_method(part, method)
    fully_shard(objective, mesh=mesh)
    for method in ("score", "text_to_image_score", "scores", "align"):
        register_fsdp_forward_method(objective, method)
