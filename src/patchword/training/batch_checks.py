"""Checks before and during training: an objective must have answers of the right form, and batches to learn from."""

from __future__ import annotations

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.distributed.tensor import DTensor

from patchword import distributed
from patchword.answers import require_answers
from patchword.contract.sample import pairs
from patchword.data.batch import Batch
from patchword.encoders.base import Encoder
from patchword.errors import UserError
from patchword.features import map_tensors
from patchword.objective import Objective
from patchword.training.grad_cache import has_batch_norm


def warn_of_split_batches(trainer: Trainer, encoder: Encoder, chunk_size: int | None) -> None:
    """Warn if negatives or batch statistics come from a smaller batch than the user may expect.

    The trainer may accumulate gradients, and batch norms of the encoder may see chunks of `chunk_size` images.
    """
    batches = trainer.accumulate_grad_batches
    if batches > 1:
        rank_zero_warn(
            f"accumulate_grad_batches={batches} adds no negatives: each of the {batches} losses contrasts only the "
            "pairs of its own batch. For the loss of one large batch in little memory, multiply data.batch_size by "
            f"{batches} and set model.chunk_size to the present data.batch_size"
        )
    if chunk_size is not None and has_batch_norm(encoder):
        rank_zero_warn(
            f"the encoder has batch norms, and model.chunk_size is {chunk_size}: each chunk is normalized separately, "
            "so the features differ from those of the complete batch. Towers with layer norms have no such difference"
        )


@torch.no_grad()
def require_right_form(objective: Objective, encoder: Encoder) -> None:
    """Call every method of the objective on three random pairs of the encoder's sizes, and check what it returns.

    Weights and the random state do not change. An objective that is sharded has been checked before.

    Raises:
        UserError: If an answer has a wrong type or shape, or is not finite.
    """
    weights = next(objective.parameters(), torch.zeros(()))
    if isinstance(weights, DTensor):
        return
    images, texts = pairs(3, encoder.grid, dtype=weights.dtype, dim=encoder.embed_dim)
    images, texts = (
        map_tensors(images, lambda x: x.to(weights.device)),
        map_tensors(texts, lambda x: x.to(weights.device)),
    )
    modes = {part: part.training for part in objective.modules()}
    with torch.random.fork_rng([weights.device] if weights.is_cuda else []), distributed.alone():
        require_answers(objective.eval(), images, texts)
    for part, training in modes.items():
        part.training = training


def require_negatives(objective: Objective, batch: Batch) -> None:
    """Refuse batches of one pair, where a contrastive loss is 0 or only pulls pairs together.

    Objectives of other packages are not checked.

    Raises:
        UserError: If the batch has one pair and there is one device.
    """
    is_ours = type(objective).__module__.startswith("patchword.")
    if is_ours and len(batch) * distributed.world_size() == 1:
        raise UserError(
            "a batch of one pair on one device has no negatives, so nothing can be learned from it: set "
            "data.batch_size to 2 or more (accumulate_grad_batches adds no negatives)"
        )


def require_captions(objective: Objective, batch: Batch) -> None:
    """Refuse several captions per image if the loss would treat them as negatives of each other.

    Raises:
        UserError: If the objective supports one caption per image and the batch has more, or if the images have
            different numbers of captions.
    """
    if len(batch.captions) == len(batch):
        return
    if not objective.multi_positive:
        raise UserError(
            f"{type(objective).__name__} takes one caption of each image, and the batch has {len(batch.captions)} for "
            f"{len(batch)} images: let the data choose one of them (captions: sample)"
        )
    if not batch.caption_image.bincount().eq(len(batch.captions) / len(batch)).all():
        raise UserError("each image of a training batch must have the same number of captions")
