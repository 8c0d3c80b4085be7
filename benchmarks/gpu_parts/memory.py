"""Time and memory, by the code of `patchword bench`, of late interaction and of exact Shapley interactions.

Late interaction is FILIP's loss, forward and backward, which keeps only the positions of its maxima. Its plain formula
stores the similarities of all tokens of all pairs, [B, B, P, L]. Interactions are those of all patches and words of
each pair; their values and gradients in float32 are compared with float64 on the CPU.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from gpu_parts.rows import Cases, Setup
from patchword.bench.candidates import Candidate, Implementation, Interactions, Setting
from patchword.bench.measure import measure
from patchword.ops import cosine
from patchword.shapley import pair_interactions


def cases(setup: Setup) -> Cases:
    """Both losses and the interactions, for growing batches."""
    sizes = (9, 5, 8) if setup.small else (196, 32, 256)
    threads = torch.get_num_threads()
    for batch in (4,) if setup.small else (128, 1024):
        setting = Setting("interactions", batch, batch, *sizes, "float32", setup.device, threads)
        yield f"Shapley, B={batch}", partial(costs, Interactions("pair_interactions", "exact", None), setting)
        yield f"Shapley error, B={batch}", partial(error, setting)
    for batch in (4,) if setup.small else (128, 512, 1024, 4096):
        setting = Setting("train", batch, batch, *sizes, "bfloat16", setup.device, threads)
        for by in ("patchword", "plain"):
            yield f"FILIP {by}, B={batch}", partial(costs, Implementation("FILIP", by), setting)


def costs(candidate: Candidate, setting: Setting) -> dict[str, Any]:
    """The time and peak memory of a candidate on random features, which are not counted."""
    (found,) = measure([candidate], setting, repeats=3)
    if found.failure:
        return {"note": f"FAILED: {found.failure}"}
    speed = setting.batch / found.seconds
    return {"seconds": found.seconds, "peak_bytes": found.peak, "images_per_second": speed}


def error(setting: Setting) -> dict[str, Any]:
    """The relative error of all interactions, in Euclidean norms, and that of the gradient of their sum of squares."""
    images, texts = setting.features()
    expected = interactions(images.patches.cpu().double(), texts.tokens.cpu().double(), texts.mask.cpu())
    found = interactions(images.patches, texts.tokens, texts.mask)
    value, gradient = (float((x.cpu() - y).norm() / y.norm()) for x, y in zip(found, expected, strict=True))
    return {"loss_error": value, "gradient_error": gradient}


def interactions(patches: Tensor, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The interactions of cosines, and the gradient of their sum of squares with respect to the cosines."""
    similarity = cosine(patches, tokens).requires_grad_()
    found = pair_interactions(similarity, mask)
    (gradient,) = torch.autograd.grad(found.square().sum(), similarity)
    return found.detach(), gradient
