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
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid, normalize

from patchword.features import Images, Texts
from patchword.objective import Objective
from patchword.objectives import CLIP, FILIP, FLAIR, MGCA, PACL, SPARC, GLoRIA, SigLIP, Sum


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
    return _sigmoid(objective.scale() * _cosines(images, texts) + objective.bias)


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


@loss.register
def _filip(objective: FILIP, images: Images, texts: Texts) -> Tensor:
    patches, tokens = normalize(images.patches, dim=-1), normalize(texts.tokens, dim=-1)
    s = torch.einsum("ipd,jld->ijpl", patches, tokens)
    to_texts = _without(s, texts.mask[None, :, None, :]).max(-1).values.mean(-1)
    to_images = (s.max(-2).values * texts.mask).sum(-1) / texts.mask.sum(-1)
    return (_rows(objective.scale() * to_texts) + _rows(objective.text_scale() * to_images.T)) / 2


@loss.register
def _pacl(objective: PACL, images: Images, texts: Texts) -> Tensor:
    v, y = normalize(images.patches, dim=-1), normalize(texts.pooled, dim=-1)
    a = (objective.attention_scale * torch.einsum("ipd,jd->ijp", v, y)).softmax(-1)
    u = torch.einsum("ijp,ipd->ijd", a, v)
    return _both_ways(objective.scale() * torch.einsum("ijd,jd->ij", u, y))


@loss.register
def _gloria(objective: GLoRIA, images: Images, texts: Texts) -> Tensor:
    v, t = images.patches, texts.tokens
    a = (objective.temp1() * torch.einsum("ipd,jwd->ijwp", v, t)).softmax(-1)
    c = torch.einsum("ijwp,ipd->ijwd", a, v)
    cosines = torch.einsum("ijwd,jwd->ijw", normalize(c, dim=-1), normalize(t, dim=-1))
    similarity = _without(objective.temp2() * cosines, texts.mask).logsumexp(-1)
    together = 2 * _both_ways(objective.temp3() * _cosines(images, texts))
    local = 2 * _both_ways(objective.temp3() * similarity)
    return objective.global_weight * together + objective.local_weight * local


@loss.register
def _mgca(objective: MGCA, images: Images, texts: Texts) -> Tensor:
    k = objective.local_scale()
    v, t = normalize(images.patches, dim=-1), normalize(texts.tokens, dim=-1)
    x, y = normalize(images.pooled, dim=-1), normalize(texts.pooled, dim=-1)
    real = torch.ones_like(v[..., 0], dtype=torch.bool)
    local = _read_and_tell_apart(objective.words, t, v, y, texts.mask, real, k)
    local = local + _read_and_tell_apart(objective.patches, v, t, x, real, texts.mask, k)

    centres = normalize(objective.centres, dim=-1)
    x, y = torch.einsum("bd,kd->bk", x, centres), torch.einsum("bd,kd->bk", y, centres)
    predicted_x, predicted_y = (objective.prototype_scale() * z for z in (x, y))
    crossed = -(_sinkhorn(objective, x) * predicted_y.log_softmax(-1)).sum(-1).mean() / 2
    crossed = crossed - (_sinkhorn(objective, y) * predicted_x.log_softmax(-1)).sum(-1).mean() / 2

    together = _both_ways(objective.scale() * _cosines(images, texts))
    return objective.global_weight * together + objective.local_weight * local + objective.prototype_weight * crossed


def _read_and_tell_apart(
    attention: Any, x: Tensor, y: Tensor, pooled: Tensor, x_mask: Tensor, y_mask: Tensor, k: Tensor
) -> Tensor:
    """MGCA's L_word for words x that read patches y, its L_patch for the opposite."""
    s = torch.einsum("bnd,bmd->bnm", attention.query(x), attention.key(y)) / math.sqrt(x.shape[-1])
    a = _without(s, y_mask[:, None, :]).softmax(-1)
    o = attention.output(torch.einsum("bnm,bmd->bnd", a, attention.value(y)))
    logits = k * torch.einsum("bnd,bmd->bnm", x, normalize(o, dim=-1))
    with torch.no_grad():  # how much each x counts: its cosine with the pooled embedding, without the extremes
        c = torch.einsum("bd,bnd->bn", pooled, x)
        c = c.to(torch.promote_types(c.dtype, torch.float32)).masked_fill(~x_mask, torch.nan)  # quantiles need it
        low, high = (c.nanquantile(q, -1, keepdim=True) for q in (0.1, 0.9))
        w = _without(k * c.clamp(low, high).nan_to_num(), x_mask).softmax(-1)
    found = torch.zeros((), device=x.device)
    for way in (logits, logits.mT):
        own = _without(way, x_mask[:, None, :]).log_softmax(-1).diagonal(dim1=-2, dim2=-1)
        found = found - (w * own.masked_fill(~x_mask, 0)).sum(-1).mean() / 2
    return found


@torch.no_grad()
def _sinkhorn(objective: MGCA, similarity: Tensor) -> Tensor:
    """[B, K]: every prototype gets the same from all samples, every sample has 1 to give."""
    q = (similarity / objective.epsilon).exp()
    for _ in range(objective.sinkhorn_iterations):
        q = q / q.sum(0)
        q = q / q.sum(1, keepdim=True)
    return q


@loss.register
def _flair(objective: FLAIR, images: Images, texts: Texts) -> Tensor:
    heads = objective.heads
    q = objective.query(texts.pooled).unflatten(-1, (heads, -1))
    keys, values = (f(images.patches).unflatten(-1, (heads, -1)) for f in (objective.key, objective.value))
    e = (torch.einsum("jhd,iphd->ijhp", q, keys) / math.sqrt(q.shape[-1])).exp()
    a = e / (1 + e.sum(-1, keepdim=True))  # 1 for the empty key
    v = objective.output(torch.einsum("ijhp,iphd->ijhd", a, values).flatten(2))
    t = normalize(texts.pooled, dim=-1)
    asked = torch.einsum("ijd,jd->ij", normalize(v, dim=-1), t)
    k, b = objective.scale(), objective.bias
    return objective.text_conditioned_weight * _sigmoid(k * asked + b) + objective.global_weight * _sigmoid(
        k * _cosines(images, texts) + b
    )


@loss.register
def _sum(objective: Sum, images: Images, texts: Texts) -> Tensor:
    parts = dict(objective.objectives.items())
    return torch.stack([weight * loss(parts[n], images, texts) for n, weight in objective.weights.items()]).sum()  # type: ignore[arg-type]


def _cosines(images: Images, texts: Texts) -> Tensor:
    """[B, B] of the global embeddings."""
    return torch.einsum("id,jd->ij", normalize(images.pooled, dim=-1), normalize(texts.pooled, dim=-1))


def _both_ways(logits: Tensor) -> Tensor:
    """Half the cross-entropy of rows and of columns, whose targets lie on the diagonal."""
    return (_rows(logits) + _rows(logits.T)) / 2


def _rows(logits: Tensor) -> Tensor:
    return cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def _sigmoid(logits: Tensor) -> Tensor:
    """SigLIP's loss: the sum over texts and the mean over images; own pairs are positive."""
    signs = 2 * torch.eye(len(logits), device=logits.device) - 1
    return -logsigmoid(signs * logits).sum() / len(logits)


def _without(x: Tensor, mask: Tensor) -> Tensor:
    """`x`, so low where `mask` is False that no maximum and no softmax sees it."""
    return x.masked_fill(~mask, torch.finfo(x.dtype).min)
