"""Each objective's training loss as one would first write it down: the equations as einsums, all pairs at once.

They are what the objectives are timed beside, and a second, independent way to the same numbers: a test compares losses
and gradients. They read an objective's parameters and follow its default switches, and they build every intermediate
of their equation, [B, B, P, L] included. Images have no padding; `texts.mask` is False on padded tokens.

    from patchword.bench import plain

    @plain.loss.register
    def _(objective: MyObjective, images, texts):
        ...

puts the plain formula of one's own objective into the table.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid, normalize

from patchword.features import Images, Texts
from patchword.objective import Objective
from patchword.objectives import CLIP, SPARC, SigLIP


@functools.singledispatch
def loss(objective: Objective, images: Images, texts: Texts) -> Tensor:
    """The loss of the pairs (images[b], texts[b]), by the plain formula of the objective's class.

    Raises:
        NotImplementedError: For a class that has none.
    """
    raise NotImplementedError(f"{type(objective).__name__} has no plain formula")


@loss.register
def _clip(objective: CLIP, images: Images, texts: Texts) -> Tensor:
    return _both_ways(objective.scale() * _cosines(images, texts))


@loss.register
def _siglip(objective: SigLIP, images: Images, texts: Texts) -> Tensor:
    logits = objective.scale() * _cosines(images, texts) + objective.bias
    signs = 2 * torch.eye(len(images), device=logits.device) - 1
    return -logsigmoid(signs * logits).sum() / len(images)


@loss.register
def _sparc(objective: SPARC, images: Images, texts: Texts) -> Tensor:
    s = torch.einsum("bld,bpd->blp", texts.tokens, images.patches)
    low, high = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    s = (s - low) / (high - low)
    s = torch.where(s < 1 / s.shape[-1], 0, s)
    a = s / s.sum(-1, keepdim=True)
    c = normalize(torch.einsum("blp,bpd->bld", a, images.patches), dim=-1)
    t = normalize(texts.tokens, dim=-1)
    logits = objective.local_scale() * torch.einsum("bjd,bkd->bjk", c, t)
    local = torch.zeros((), device=s.device)
    for way in (logits, logits.mT):
        own = _without(way, texts.mask[:, None, :]).log_softmax(-1).diagonal(dim1=-2, dim2=-1)
        local = local - own[texts.mask].mean() / 2
    together = _both_ways(objective.scale() * _cosines(images, texts))
    return objective.global_weight * together + objective.local_weight * local


def _cosines(images: Images, texts: Texts) -> Tensor:
    """[B, B] of the global embeddings."""
    return torch.einsum("id,jd->ij", normalize(images.pooled, dim=-1), normalize(texts.pooled, dim=-1))


def _both_ways(logits: Tensor) -> Tensor:
    """Half the cross-entropy of rows and of columns, whose targets lie on the diagonal."""
    own = torch.arange(len(logits), device=logits.device)
    return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2


def _without(x: Tensor, mask: Tensor) -> Tensor:
    """`x`, so low where `mask` is False that no maximum and no softmax sees it."""
    return x.masked_fill(~mask, torch.finfo(x.dtype).min)
