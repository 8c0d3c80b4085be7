"""A teacher: an exponential moving average of the encoder that is trained, for self-distillation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from patchword.data.batch import Batch
from patchword.encoders.base import Encoder, Selection, Tokens
from patchword.errors import UserError
from patchword.features import Images, Texts
from patchword.training import grad_cache

Tensors = tuple[Tensor, ...] | list[Tensor]


class Teacher(AveragedModel):
    """The moving average of an encoder's parameters and statistics; it starts as a copy, and is never trained.

    It is always in eval mode. Call `update_parameters` with the encoder after each step of the optimizer.

    Args:
        encoder: The student.
        momentum: The share of the average that remains in each step; the rest is the student's.

    Raises:
        UserError: If the momentum is not in [0, 1].
    """

    module: Encoder

    def __init__(self, encoder: Encoder, momentum: float) -> None:
        if not 0 <= momentum <= 1:
            raise UserError(f"teacher_momentum must lie in [0, 1], not {momentum}")
        super().__init__(encoder, multi_avg_fn=_average(momentum), use_buffers=True)
        self.update_parameters(encoder)  # the first average is the student itself
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Teacher:
        """Remain in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def teach(
        self, images: Images, texts: Texts, batch: Batch, tokens: Tokens, selection: Selection, chunk_size: int | None
    ) -> tuple[Images, Texts]:
        """Add the teacher's embeddings of images, of their large crops and of texts.

        Args:
            images: The embeddings of the batch's images.
            texts: The embeddings of its captions.
            batch: The batch.
            tokens: The tokens of its captions.
            selection: The tokens of `Texts.mask`.
            chunk_size: The largest number of images, and of captions, that are encoded at once.
        """
        seen = batch.images[:, None]
        if batch.global_views is not None:
            seen = torch.cat([seen, batch.global_views], 1)
        pooled = grad_cache.encode_images(self.module, seen.flatten(0, 1), chunk_size).pooled
        images = replace(images, teacher=pooled.unflatten(0, (len(batch), -1)))
        return images, replace(
            texts, teacher=grad_cache.encode_texts(self.module, tokens, selection, chunk_size).pooled
        )


def _average(momentum: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """torch's moving average, but numbers that are not floating point, such as positions, are copied.

    torch averages them too and rounds down, which can change a position.
    """
    of_floats = get_ema_multi_avg_fn(momentum)

    def update(average: Tensors, student: Tensors, count: Tensor | int) -> None:
        if average[0].is_floating_point():
            pairs = [*zip(average, student, strict=True)]
            for sharded in (False, True):  # with FSDP2, parameters are sharded and statistics are not
                own = [pair for pair in pairs if isinstance(pair[0], DTensor) is sharded]
                if own:
                    of_floats([a for a, _ in own], [b for _, b in own], count)
        else:
            torch._foreach_copy_(average, student)

    return update
