"""Exact Shapley interactions of all patches and words of each pair, and their agreement with float64 on the CPU."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from gpu_parts.costs import costs
from gpu_parts.rows import Cases, Setup
from patchword.bench.candidates import Interactions, Setting
from patchword.ops import cosine
from patchword.shapley import pair_interactions


def cases(setup: Setup) -> Cases:
    """The cost for two batches, and the error of float32."""
    sizes = (9, 5, 8) if setup.small else (196, 32, 256)
    for batch in (4,) if setup.small else (128, 1024):
        setting = Setting("interactions", batch, batch, *sizes, "float32", setup.device, torch.get_num_threads())
        yield f"exact, B={batch}", partial(costs, Interactions("pair_interactions", "exact", None), setting)
        yield f"fp32, B={batch}", partial(error, setting)


def error(setting: Setting) -> dict[str, Any]:
    """The relative error of all interactions, in Euclidean norms, and that of the gradient of their sum of squares."""
    images, texts = setting.features()
    expected = interactions(images.patches.cpu().double(), texts.tokens.cpu().double(), texts.mask.cpu())
    found = interactions(images.patches, texts.tokens, texts.mask)
    loss, gradient = (float((x.cpu() - y).norm() / y.norm()) for x, y in zip(found, expected, strict=True))
    return {"loss_error": loss, "gradient_error": gradient}


def interactions(patches: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The interactions of cosines, and the gradient of their sum of squares with respect to the cosines."""
    similarity = cosine(patches, tokens).requires_grad_()
    found = pair_interactions(similarity, mask)
    (gradient,) = torch.autograd.grad(found.square().sum(), similarity)
    return found.detach(), gradient
