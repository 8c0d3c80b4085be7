"""Builds the error message for a loss that is not finite: the terms, and the samples that caused it."""

from __future__ import annotations

from math import isfinite

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchword.features import Images, Texts


def diagnose(
    terms: dict[str, Float[Tensor, ""]], images: Images, texts: Texts, ids: Int[Tensor, " B"], step: int
) -> str:
    """A message with the loss terms, the ids of the samples, and those of samples whose features are not finite."""
    values = sorted(((float(term.detach()), name) for name, term in terms.items()), key=lambda term: isfinite(term[0]))
    listed = ", ".join(f"{name} = {value:.4g}" for value, name in values)  # terms that are not finite come first
    message = f"the loss is not finite at step {step}: {listed}. "
    bad = torch.zeros(len(ids), dtype=torch.bool, device=images.pooled.device)
    for x in (images.pooled, images.patches, texts.pooled, texts.tokens.masked_fill(~texts.mask[..., None], 0)):
        bad |= ~x.detach().flatten(1).isfinite().all(1)
    if bad.all():
        message += "The features of all samples are not finite: the weights or the learning rate are too large"
    elif bad.any():
        message += f"The features of these samples are not finite: {_listed(ids[bad.to(ids.device)])}"
    else:
        message += "All features are finite, so the objective caused it"
    return f"{message}. Samples of the batch: {_listed(ids)}"


def _listed(ids: Tensor) -> str:
    return ", ".join(map(str, ids.tolist()))
