"""The plain formula of each objective's loss: the equations as einsums, in at most ten lines.

`patchword bench` compares the objectives with these formulas, and a test compares their losses and gradients. The
formulas use the parameters of an objective and its default options. They build every intermediate tensor of the
equations, including those of shape [B, B, P, L]. Images have no padding; `texts.mask` is False for padded tokens. What
formulas share, and the steps that are longer, are in `plain_parts.py`. LOUPE's boxes come from its region head, and
PowerCLIP's are drawn by its class.

To add the plain formula of your own objective:

    from patchword.bench import plain

    @plain.loss.register
    def _(objective: MyObjective, images, texts):
        ...
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize, one_hot

from patchword.bench.plain_parts import (
    attended_loss,
    beta_targets,
    both_ways,
    cosines,
    cross_attention,
    crowding,
    every_pair,
    given,
    hardest_negatives,
    log_cosh,
    main_components,
    mask_logits,
    mlp,
    pair_labels,
    per_token,
    phrase_members,
    ranking,
    region_labels,
    rows,
    sigmoid,
    sinkhorn,
    tree_members,
    unit_regions,
    without,
    wrong_cosines,
)
from patchword.features import Images, Texts
from patchword.objective import Objective
from patchword.objectives import (
    CLIP,
    COSMOS,
    FGCLIP,
    FGCLIP2,
    FILIP,
    FLAIR,
    LOUPE,
    MGCA,
    PACL,
    SPARC,
    BetaCLIP,
    DreamLIP,
    GLoRIA,
    LongCLIP,
    NegCLIP,
    PowerCLIP,
    SigLIP,
    SmartCLIP,
    Sum,
    SuperCLIP,
)


@functools.singledispatch
def loss(objective: Objective, images: Images, texts: Texts) -> Tensor:
    """Return the loss of the pairs (images[b], texts[b]) by the plain formula of the objective's class.

    Raises:
        NotImplementedError: If the class has no plain formula.
    """
    raise NotImplementedError(f"{type(objective).__name__} has no plain formula")


@loss.register
def _clip(objective: CLIP, images: Images, texts: Texts) -> Tensor:
    return both_ways(objective.scale() * cosines(images, texts))


@loss.register
def _siglip(objective: SigLIP, images: Images, texts: Texts) -> Tensor:
    return sigmoid(objective.scale() * cosines(images, texts) + objective.bias)


@loss.register
def _super_clip(objective: SuperCLIP, images: Images, texts: Texts) -> Tensor:
    found = one_hot(given(texts.ids).clamp_min(-1) + 1, objective.vocabulary + 1).amax(1)[:, 1:]  # [B, V]
    n, seen = objective.captions_with, objective.captions
    if objective.training:  # the objective counts these captions as well
        n, seen = n + found.sum(0), seen + len(found)
    y = found * ((seen + 1) / (n + 1).to(images.patches.dtype)).log()  # (b)
    y = normalize(y, p=1, dim=-1)  # (c)
    p = objective.classifier(objective.norm(images.patches.mean(1))).log_softmax(-1)
    classification = -torch.einsum("ic,ic->i", y, p).mean()  # (d)
    together = both_ways(objective.scale() * cosines(images, texts))
    return objective.global_weight * together + objective.classification_weight * classification  # (e)


@loss.register
def _neg_clip(objective: NegCLIP, images: Images, texts: Texts) -> Tensor:
    x, n = normalize(images.pooled, dim=-1), normalize(given(images.negatives), dim=-1)
    z, wrong = cosines(images, texts), torch.einsum("id,jmd->ijm", x, n)
    wrong = without(wrong, (n != 0).any(-1)).flatten(1)
    return (rows(objective.scale() * torch.cat([z, wrong], 1)) + rows(objective.scale() * z.T)) / 2


@loss.register
def _fgclip(objective: FGCLIP, images: Images, texts: Texts) -> Tensor:
    together = both_ways(objective.scale() * cosines(images, texts))  # (a)
    r, u = unit_regions(images)  # (b)
    region = both_ways(objective.region_scale() * torch.einsum("md,nd->mn", r, u))  # (c)
    x, n = normalize(images.pooled, dim=-1), normalize(given(images.negatives), dim=-1)
    wrong = without(torch.einsum("id,imd->im", x, n), (n != 0).any(-1))
    z = objective.negative_scale() * torch.cat([cosines(images, texts).diagonal()[:, None], wrong], 1)
    negative = cross_entropy(z, torch.zeros_like(z[:, 0], dtype=torch.long))  # (d)
    return objective.global_weight * together + objective.region_weight * region + objective.negative_weight * negative


@loss.register
def _fgclip2(objective: FGCLIP2, images: Images, texts: Texts) -> Tensor:
    z, s, (r, u) = cosines(images, texts), objective.negative_scale(), unit_regions(images)
    wrong, own, present = wrong_cosines(images)
    region = both_ways(objective.region_scale() * torch.einsum("md,nd->mn", r, u))  # (b)
    negative = -(s * torch.cat([z.diagonal()[:, None], own], 1)).log_softmax(1)[:, 0].mean()  # (c)
    batch_negative = (rows(s * torch.cat([z, wrong], 1)) + rows(s * z.T)) / 2  # (d)
    rank = ranking(objective, (s * (z.diagonal()[:, None] - own))[present])  # (2), (3)
    total = objective.global_weight * sigmoid(objective.scale() * z + objective.bias) + objective.region_weight * region
    total = total + objective.text_weight * crowding(u, objective.neighbors, objective.similarity_limit)  # (a), (1)
    total = total + objective.negative_weight * negative + objective.batch_negative_weight * batch_negative
    return total + objective.rank_weight * rank  # (4)


@loss.register
def _sparc(objective: SPARC, images: Images, texts: Texts) -> Tensor:
    s = torch.einsum("bld,bpd->blp", texts.tokens, images.patches)  # (2)
    low, high = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    s = (s - low) / (high - low)  # (3)
    s = torch.where(s < 1 / s.shape[-1], 0, s)
    a = s / s.sum(-1, keepdim=True)  # (4)
    c = normalize(torch.einsum("blp,bpd->bld", a, images.patches), dim=-1)  # (5)
    logits = objective.local_scale() * torch.einsum("bjd,bkd->bjk", c, normalize(texts.tokens, dim=-1))
    local = per_token(logits, texts.mask).sum() / texts.mask.sum()  # (6)
    together = both_ways(objective.scale() * cosines(images, texts))  # (1)
    return objective.global_weight * together + objective.local_weight * local  # (7)


@loss.register
def _filip(objective: FILIP, images: Images, texts: Texts) -> Tensor:
    patches, tokens = normalize(images.patches, dim=-1), normalize(texts.tokens, dim=-1)
    s = torch.einsum("ipd,jld->ijpl", patches, tokens)  # (a)
    to_texts = without(s, texts.mask[None, :, None, :]).max(-1).values.mean(-1)  # (b)
    to_images = (s.max(-2).values * texts.mask).sum(-1) / texts.mask.sum(-1)  # (c)
    return (rows(objective.scale() * to_texts) + rows(objective.text_scale() * to_images.T)) / 2  # (d)


@loss.register
def _pacl(objective: PACL, images: Images, texts: Texts) -> Tensor:
    v, y = normalize(images.patches, dim=-1), normalize(texts.pooled, dim=-1)
    a = (objective.attention_scale * torch.einsum("ipd,jd->ijp", v, y)).softmax(-1)  # (2)
    u = torch.einsum("ijp,ipd->ijd", a, v)  # (3)
    return both_ways(objective.scale() * torch.einsum("ijd,jd->ij", u, y))


@loss.register
def _gloria(objective: GLoRIA, images: Images, texts: Texts) -> Tensor:
    v, t = images.patches, texts.tokens
    a = (objective.temp1() * torch.einsum("ipd,jwd->ijwp", v, t)).softmax(-1)  # (3, 4)
    c = torch.einsum("ijwp,ipd->ijwd", a, v)  # (5)
    cosine = torch.einsum("ijwd,jwd->ijw", normalize(c, dim=-1), normalize(t, dim=-1))
    similarity = without(objective.temp2() * cosine, texts.mask).logsumexp(-1)  # (6)
    local = 2 * both_ways(objective.temp3() * similarity)  # (7, 8)
    together = 2 * both_ways(objective.temp3() * cosines(images, texts))
    return objective.global_weight * together + objective.local_weight * local  # (9)


@loss.register
def _mgca(objective: MGCA, images: Images, texts: Texts) -> Tensor:
    v, t, x, y = (normalize(z, dim=-1) for z in (images.patches, texts.tokens, images.pooled, texts.pooled))
    real, k = torch.ones_like(v[..., 0]).bool(), objective.local_scale()
    words = attended_loss(objective.words, t, v, y, texts.mask, real, k)  # (a), (b)
    local = words + attended_loss(objective.patches, v, t, x, real, texts.mask, k)  # (c)
    x, y = (torch.einsum("bd,kd->bk", z, normalize(objective.centers, dim=-1)) for z in (x, y))
    q_x, q_y = sinkhorn(objective, x), sinkhorn(objective, y)  # (d)
    k = objective.prototype_scale()
    swapped = (cross_entropy(k * y, q_x) + cross_entropy(k * x, q_y)) / 2  # (e)
    together = both_ways(objective.scale() * cosines(images, texts))
    return objective.global_weight * together + objective.local_weight * local + objective.prototype_weight * swapped


@loss.register
def _flair(objective: FLAIR, images: Images, texts: Texts) -> Tensor:
    q = objective.query(texts.pooled).unflatten(-1, (objective.heads, -1))  # (a)
    keys, values = (f(images.patches).unflatten(-1, (objective.heads, -1)) for f in (objective.key, objective.value))
    e = (torch.einsum("jhd,iphd->ijhp", q, keys) / math.sqrt(q.shape[-1])).exp()
    a = e / (1 + e.sum(-1, keepdim=True))  # (b); the 1 is the empty key
    v = objective.output(torch.einsum("ijhp,iphd->ijhd", a, values).flatten(2))  # (c)
    z = torch.einsum("ijd,jd->ij", normalize(v, dim=-1), normalize(texts.pooled, dim=-1))
    k, b = objective.scale(), objective.bias
    conditioned, together = sigmoid(k * z + b), sigmoid(k * cosines(images, texts) + b)  # (d), (e)
    return objective.text_conditioned_weight * conditioned + objective.global_weight * together  # (f)


@loss.register
def _beta_clip(objective: BetaCLIP, images: Images, texts: Texts) -> Tensor:
    t, p, heads = normalize(texts.pooled, dim=-1), normalize(images.patches, dim=-1), (objective.heads, -1)
    q, keys, values = objective.query(t), objective.key(p), objective.value(p)
    q, keys, values = (x.unflatten(-1, heads) for x in (q, keys, values))
    a = (torch.einsum("jhd,iphd->ijhp", q, keys) / math.sqrt(q.shape[-1])).softmax(-1)  # (a)
    o = objective.output(torch.einsum("ijhp,iphd->ijhd", a, values).flatten(2))
    v = normalize(o + mlp(objective, objective.norm(o)), dim=-1)  # (b)
    s = objective.conditioned_scale() * torch.einsum("ijd,md->ijm", v, t)  # image i pooled by text j, with text m
    together = both_ways(objective.scale() * cosines(images, texts))
    conditioned = beta_targets(s, objective.beta)  # (c) to (f)
    return objective.text_conditioned_weight * conditioned + objective.global_weight * together  # (g)


@loss.register
def _smart_clip(objective: SmartCLIP, images: Images, texts: Texts) -> Tensor:
    soft = mask_logits(objective.network, texts.tokens.detach(), texts.mask).sigmoid()  # (a), (b)
    m = (soft >= 0.5).to(soft.dtype) + soft - soft.detach()  # (c)
    masked = torch.einsum("id,jd->ijd", images.pooled, m)
    z = torch.einsum("ijd,jd->ij", normalize(masked, dim=-1), normalize(texts.pooled, dim=-1))
    contrastive = both_ways(objective.scale() * z)  # (d)
    return objective.contrastive_weight * contrastive + objective.sparsity_weight * m.abs().mean()  # (e)


@loss.register
def _loupe(objective: LOUPE, images: Images, texts: Texts) -> Tensor:
    regions, confidence = objective.propose_regions(images)
    a = torch.einsum("bld,bpd->blp", normalize(texts.tokens, dim=-1), normalize(images.patches, dim=-1))
    token = binary_cross_entropy_with_logits(confidence, region_labels(a, texts.mask, regions))  # (a), (b)
    phrases, real = phrase_members(texts)
    h, u = regions.to(a.dtype) @ images.patches, phrases @ texts.tokens  # sums, whose cosines are those of the means
    s = torch.einsum("bid,bjd->bij", normalize(h, dim=-1), normalize(u, dim=-1))
    losses = -(pair_labels(s, real) * (objective.scale() * s).log_softmax(1)).sum(1)  # (c), (d)
    semantic = (losses.sum(-1) / real.sum(-1)).mean()
    together = both_ways(objective.scale() * cosines(images, texts))
    return objective.global_weight * together + objective.token_weight * token + objective.semantic_weight * semantic


@loss.register
def _power_clip(objective: PowerCLIP, images: Images, texts: Texts) -> Tensor:
    boxes, (members, real) = objective.draw_boxes(images).to(images.patches.dtype), tree_members(texts)
    r = normalize(torch.einsum("imp,ipd->imd", boxes, images.patches), dim=-1)  # (a)
    p = torch.einsum("jbl,jld->jbd", members, normalize(texts.tokens, dim=-1))  # (b)
    s = torch.einsum("imd,jbd->ijbm", r, p) / objective.smoothing  # (c)
    t2r = (torch.logaddexp(s, torch.zeros_like(s)).sum(-1) * real).sum(-1) / real.sum(-1)  # (e)
    r2t = without((s / 2 + objective.zeta * log_cosh(s / 2)).sum(-1), real).logsumexp(-1)  # (f)
    powerset = hardest_negatives(objective.smoothing * (t2r + r2t), objective.margin)  # (g)
    together = both_ways(objective.scale() * cosines(images, texts))
    return objective.global_weight * together + objective.powerset_weight * powerset  # (h)


@loss.register
def _longclip(objective: LongCLIP, images: Images, texts: Texts) -> Tensor:
    x, y = normalize(images.pooled, dim=-1), normalize(texts.pooled, dim=-1).unflatten(0, (len(images), -1))  # (a)
    p, k, share = main_components(x, objective.components), objective.scale(), objective.label_smoothing  # (b), (c)
    long = both_ways(k * x @ y[:, 0].T, share)  # (d), (e)
    short = both_ways(k * p @ y[:, -1].T, share)
    return objective.long_weight * long + objective.short_weight * short  # (f)


@loss.register
def _dreamlip(objective: DreamLIP, images: Images, texts: Texts) -> Tensor:
    x, v = normalize(images.pooled, dim=-1), normalize(images.patches, dim=-1)
    t = normalize(texts.pooled, dim=-1).unflatten(0, (len(images), -1))  # [B, K, D]
    s = torch.einsum("bkd,bpd->bkp", t, v)  # (a)
    low, high = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    a = torch.where((s - low) / (high - low) < 0.1, 0, (s - low) / (high - low))  # (b); (c) has no effect on the loss
    c = normalize(torch.einsum("bkp,bpd->bkd", a, v), dim=-1)  # (d)
    local = both_ways(objective.grouping.local_scale() * c.flatten(0, 1) @ t.flatten(0, 1).T)  # (e)
    together = torch.stack([both_ways(objective.grouping.scale() * x @ each.T) for each in t.unbind(1)]).mean()  # (f)
    return objective.global_weight * together + objective.local_weight * local  # (g)


@loss.register
def _cosmos(objective: COSMOS, images: Images, texts: Texts) -> Tensor:
    own = (len(images), len(texts) // len(images))
    x, t = torch.cat([images.pooled[:, None], given(images.views)], 1), texts.pooled.unflatten(0, own)
    u = x + cross_attention(objective.of_tokens, x, texts.tokens[:: own[1]], texts.mask[:: own[1]])  # (a), (b)
    w = t + cross_attention(
        objective.of_patches, t, images.patches, torch.ones_like(images.patches[..., 0]).bool()
    )  # (c)
    image, text = given(images.teacher), given(texts.teacher).unflatten(0, own)[:, : objective.global_texts]
    together = every_pair(x[:, : image.shape[1]], t, objective.scale())  # (d), (e)
    distilled = [every_pair(a, b, objective.distillation_scale()) for a in (u, w) for b in (image, text)]  # (f)
    return objective.global_weight * together + objective.distillation_weight * torch.stack(distilled).mean()  # (g)


@loss.register
def _sum(objective: Sum, images: Images, texts: Texts) -> Tensor:
    losses = [weight * loss(objective.part(name), images, texts) for name, weight in objective.weights.items()]
    return torch.stack(losses).sum()
