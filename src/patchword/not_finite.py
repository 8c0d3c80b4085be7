"""What to say when a loss is not a number: which term broke, and where to look."""

from __future__ import annotations

from math import isfinite

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchword.features import Images, Texts


def diagnose(
    terms: dict[str, Float[Tensor, ""]], images: Images, texts: Texts, ids: Int[Tensor, " B"], step: int
) -> str:
    """A message that names the terms, the samples of the batch, and those with features that are not finite.

    Args:
        terms: The objective's.
        images: Of the batch.
        texts: Of the batch.
        ids: The samples' ids.
        step: Of the training.
    """
    values = sorted(((float(term.detach()), name) for name, term in terms.items()), key=lambda term: isfinite(term[0]))
    told = ", ".join(f"{name} = {value:.4g}" for value, name in values)  # those that broke first
    message = f"the loss is not finite at step {step}: {told}. "
    bad = torch.zeros(len(ids), dtype=torch.bool, device=images.pooled.device)
    for x in (images.pooled, images.patches, texts.pooled, texts.tokens.masked_fill(~texts.mask[..., None], 0)):
        bad |= ~x.detach().flatten(1).isfinite().all(1)
    if bad.all():
        message += "The features of all samples are not finite: the weights are, or the learning rate was, too large"
    elif bad.any():
        message += f"The features of these samples are not finite: {_listed(ids[bad.to(ids.device)])}"
    else:
        message += "All features are finite: the objective made it"
    return f"{message}. The batch's samples: {_listed(ids)}"


def _listed(ids: Tensor) -> str:
    return ", ".join(map(str, ids.tolist()))
