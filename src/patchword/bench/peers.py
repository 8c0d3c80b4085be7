"""open_clip's losses on our features. patchword does not install open_clip: `pip install open_clip_torch`."""

from __future__ import annotations

import functools
import importlib.util

from torch import Tensor
from torch.nn.functional import normalize

from patchword.features import Images, Texts
from patchword.objective import Objective
from patchword.objectives import CLIP, SigLIP


def installed() -> bool:
    """Return whether open_clip can be imported."""
    return importlib.util.find_spec("open_clip") is not None


@functools.singledispatch
def loss(objective: Objective, images: Images, texts: Texts) -> Tensor:
    """Return the loss of the pairs (images[b], texts[b]) as open_clip computes it, including normalization.

    Raises:
        NotImplementedError: If open_clip has no loss for this class.
    """
    raise NotImplementedError(f"open_clip has no loss for {type(objective).__name__}")


@loss.register
def _clip(objective: CLIP, images: Images, texts: Texts) -> Tensor:
    from open_clip.loss import ClipLoss

    return ClipLoss()(normalize(images.pooled, dim=-1), normalize(texts.pooled, dim=-1), objective.scale())


@loss.register
def _siglip(objective: SigLIP, images: Images, texts: Texts) -> Tensor:
    from open_clip.loss import SigLipLoss

    x, y = normalize(images.pooled, dim=-1), normalize(texts.pooled, dim=-1)
    return SigLipLoss()(x, y, objective.scale(), objective.bias)
