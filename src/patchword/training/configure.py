"""Changes of a model that its options and the trainer's devices require before training or evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from patchword.encoders.checkpointing import checkpoint_gradients
from patchword.encoders.compilation import compile_towers
from patchword.errors import UserError
from patchword.training.fsdp import shard
from patchword.training.sync_batch_norm import synchronize_batch_norms

if TYPE_CHECKING:
    from patchword.module import AlignmentModule


def configure(module: AlignmentModule) -> None:
    """Synchronize batch norms, checkpoint, compile and shard the towers. A second call changes nothing.

    Raises:
        UserError: If the trainer's precision would put the objective's parameters into half precision.
    """
    precision = module.trainer.precision
    if precision in ("16-true", "bf16-true"):
        raise UserError(f"trainer.precision is {precision}, but objectives compute in float32: use bf16-mixed")
    synchronize_batch_norms(module)
    if module.gradient_checkpointing:
        checkpoint_gradients(module.encoder)
    teacher = None if module.teacher is None else module.teacher.module
    if module.compiled:
        compile_towers(module.encoder)
        if teacher is not None:
            compile_towers(teacher)
    if module.device_mesh is not None:  # of Lightning's ModelParallelStrategy
        shard(module.encoder, module.objective, module.device_mesh, teacher)
