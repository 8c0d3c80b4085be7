"""What the plain formulas in `plain.py` share, and the steps of other formulas that are longer than one line."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, logsigmoid, normalize, one_hot

from patchword.features import Images, Texts
from patchword.objectives import FGCLIP2, MGCA


def given(x: Tensor | None) -> Tensor:
    """Return an optional part of the images or texts, which must be given."""
    assert x is not None
    return x


def cosines(images: Images, texts: Texts) -> Tensor:
    """Return the cosines of all global embeddings, [B, B]."""
    return torch.einsum("id,jd->ij", normalize(images.pooled, dim=-1), normalize(texts.pooled, dim=-1))


def both_ways(logits: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean of the cross-entropies of rows and columns, with targets on the diagonal."""
    return (rows(logits, label_smoothing) + rows(logits.T, label_smoothing)) / 2


def rows(logits: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy of the rows, with targets on the diagonal."""
    return cross_entropy(logits, torch.arange(len(logits), device=logits.device), label_smoothing=label_smoothing)


def unit_regions(images: Images) -> tuple[Tensor, Tensor]:
    """Return the mean patch of each region of the batch and its text, both [N, D] and normalized."""
    present = given(images.regions).sum(-1) > 0
    r = torch.einsum("imp,ipd->imd", given(images.regions), images.patches)[present]
    return normalize(r, dim=-1), normalize(given(images.region_texts)[present], dim=-1)


def wrong_cosines(images: Images) -> tuple[Tensor, Tensor, Tensor]:
    """Return the cosines of images with all hard negatives, [B, B M], with their own, and which exist, both [B, M]."""
    x, n = normalize(images.pooled, dim=-1), normalize(given(images.negatives), dim=-1)
    present = (n != 0).any(-1)
    wrong = without(torch.einsum("id,jmd->ijm", x, n), present)
    return wrong.flatten(1), torch.einsum("iim->im", wrong), present


def crowding(u: Tensor, neighbors: int, limit: float) -> Tensor:
    """Return FG-CLIP 2's loss of the normalized texts of regions, [N, D]."""
    z = u @ u.T
    nearest = without(z, z <= limit).topk(min(neighbors, len(u))).values
    return nearest.logsumexp(-1)[nearest[:, 0] >= -1].mean()


def ranking(objective: FGCLIP2, gap: Tensor) -> Tensor:
    """Return FG-CLIP 2's rank loss of the gaps, [N], and store the margin of the next step."""
    loss = (objective.margin - gap).relu().mean()
    if objective.training:
        objective.margin.copy_(gap.detach().mean().clamp(0, objective.largest_margin))
    return loss


def every_pair(x: Tensor, y: Tensor, k: Tensor) -> Tensor:
    """Return the mean of `both_ways` of the cosines of every m-th vector of x with every n-th of y, [B, M or N, D]."""
    x, y = normalize(x, dim=-1), normalize(y, dim=-1)
    return torch.stack([both_ways(k * a @ b.T) for a in x.unbind(1) for b in y.unbind(1)]).mean()


def cross_attention(layers: Any, queries: Tensor, context: Tensor, mask: Tensor) -> Tensor:
    """Return what each query reads from its context with COSMOS's attention: norms, heads and projections."""
    attention = layers.attention
    inputs = (layers.query_norm(queries), *[layers.context_norm(context)] * 2)
    projections = zip(inputs, attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True)
    q, k, v = (linear(x, weight, bias).unflatten(-1, (attention.num_heads, -1)) for x, weight, bias in projections)
    s = torch.einsum("bnhd,bmhd->bhnm", q, k) / math.sqrt(q.shape[-1])
    a = without(s, mask[:, None, None]).softmax(-1)
    return attention.out_proj(torch.einsum("bhnm,bmhd->bnhd", a, v).flatten(2))


def main_components(x: Tensor, number: int) -> Tensor:
    """Return the projection of the rows of `x`, [N, D], on their first principal components."""
    if number >= min(len(x) - 1, x.shape[1]):
        return x  # all of them; singular values of 0 have no derivative
    mean = x.mean(0)
    v = torch.linalg.svd(x - mean, full_matrices=False).Vh[:number]
    return mean + (x - mean) @ v.T @ v


def sigmoid(logits: Tensor) -> Tensor:
    """Return SigLIP's loss: the sum over texts and the mean over images, with the diagonal as positives."""
    signs = 2 * torch.eye(len(logits), device=logits.device) - 1
    return -logsigmoid(signs * logits).sum() / len(logits)


def without(x: Tensor, mask: Tensor) -> Tensor:
    """Set `x` to the lowest finite value where `mask` is False, so that a maximum or softmax ignores it."""
    return x.masked_fill(~mask, torch.finfo(x.dtype).min)


def per_token(logits: Tensor, mask: Tensor) -> Tensor:
    """Return `both_ways` within each caption, [B, N, N], for each of its tokens, [B, N]; 0 where `mask` is False."""
    found = torch.zeros_like(logits[..., 0])
    for way in (logits, logits.mT):
        found = found - without(way, mask[:, None, :]).log_softmax(-1).diagonal(dim1=-2, dim2=-1) / 2
    return found.masked_fill(~mask, 0)


def attended_loss(
    attention: Any, x: Tensor, y: Tensor, pooled: Tensor, x_mask: Tensor, y_mask: Tensor, k: Tensor
) -> Tensor:
    """Return MGCA's L_word if x are words that attend to patches y, or L_patch if x are patches and y are words."""
    s = torch.einsum("bnd,bmd->bnm", attention.query(x), attention.key(y)) / math.sqrt(x.shape[-1])
    a = without(s, y_mask[:, None, :]).softmax(-1)
    o = attention.output(torch.einsum("bnm,bmd->bnd", a, attention.value(y)))
    with torch.no_grad():  # The weight of each x is based on its cosine with the pooled embedding, without outliers.
        c = torch.einsum("bd,bnd->bn", pooled, x)
        c = c.to(torch.promote_types(c.dtype, torch.float32)).masked_fill(~x_mask, torch.nan)  # for nanquantile
        low, high = (c.nanquantile(q, -1, keepdim=True) for q in (0.1, 0.9))
        w = without(k * c.clamp(low, high).nan_to_num(), x_mask).softmax(-1)
    losses = per_token(k * torch.einsum("bnd,bmd->bnm", x, normalize(o, dim=-1)), x_mask)
    return (w * losses).sum(-1).mean()


def mlp(layers: Any, x: Tensor) -> Tensor:
    """Return the result of two layers with CLIP's activation function between them."""
    hidden = layers.expand(x)
    return layers.contract(hidden * torch.sigmoid(1.702 * hidden))


def beta_targets(s: Tensor, beta: float) -> Tensor:
    """Return beta-CLIP's loss from the logits of images i pooled by texts j with texts m, [B, B K, B K].

    A vector is compared with the K texts of its image, and with every other text that has itself pooled the image. A
    text is compared with the K vectors of its image, and with the vectors that it has pooled from other images.
    """
    each = s.shape[1] // len(s)
    image = torch.arange(s.shape[1], device=s.device) // each
    other = image != torch.arange(len(s), device=s.device)[:, None]  # [B, B K]
    own = torch.stack([s[b][image == b][:, image == b] for b in range(len(s))])  # [B, K, K]
    pairwise = without(s.diagonal(dim1=1, dim2=2), other)
    rows = torch.cat([own, pairwise[:, None].expand(-1, each, -1)], -1)
    columns = torch.cat([own.mT, pairwise.T.unflatten(0, (-1, each))], -1)
    target = (beta + (1 - beta) * torch.eye(each, device=s.device, dtype=s.dtype)) / (1 + (each - 1) * beta)
    likelihood = rows.log_softmax(-1)[..., :each] + columns.log_softmax(-1)[..., :each]
    return -(target * likelihood).sum(-1).mean() / 2


def mask_logits(network: Any, tokens: Tensor, mask: Tensor) -> Tensor:
    """Return the logits of SmartCLIP's masks, [B, D]: a transformer block over tokens, and attention pooling."""
    heads = (3, network.heads, -1)
    q, k, v = network.inputs(network.first_norm(tokens)).unflatten(-1, heads).unbind(2)
    a = without(torch.einsum("bnhd,bmhd->bhnm", q, k) / math.sqrt(q.shape[-1]), mask[:, None, None]).softmax(-1)
    h = tokens + network.output(torch.einsum("bhnm,bmhd->bnhd", a, v).flatten(2))
    y = h + mlp(network, network.second_norm(h))
    return torch.einsum("bn,bnd->bd", without(network.pool(y)[..., 0], mask).softmax(-1), y)


@torch.no_grad()
def sinkhorn(objective: MGCA, similarity: Tensor) -> Tensor:
    """Assign samples to MGCA's prototypes, [B, K]: rows sum to 1, and all prototypes get about the same total."""
    q = (similarity / objective.epsilon).exp()
    for _ in range(objective.sinkhorn_iterations):
        q = q / q.sum(0)
        q = q / q.sum(1, keepdim=True)
    return q


def phrase_members(texts: Texts) -> tuple[Tensor, Tensor]:
    """Return 1 for each token of each phrase, [B, N, L] with N = L, and the mask of real phrases, [B, N].

    If a caption has no phrases, its words are its phrases.
    """
    words = torch.arange(texts.mask.shape[1], device=texts.mask.device).expand(texts.mask.shape)
    phrases = words if texts.phrases is None else texts.phrases[:, 0]
    phrases = torch.where((phrases >= 0).any(-1, keepdim=True), phrases, words)
    members = one_hot(phrases + 1, words.shape[1] + 1)[..., 1:]  # a token outside all phrases has the number -1
    members = (members * texts.mask[..., None]).mT
    return members.to(texts.tokens.dtype), members.any(-1)


def tree_members(texts: Texts) -> tuple[Tensor, Tensor]:
    """Return 1 for each token of each phrase of all levels, [B, N, L], and the mask of real phrases, [B, N].

    If a caption has no phrases, its words are its phrases; they are on a level of their own.
    """
    words, mask = torch.arange(texts.mask.shape[1], device=texts.mask.device).expand(texts.mask.shape), texts.mask
    phrases = words[:, None] if texts.phrases is None else texts.phrases
    has_phrases = (phrases.masked_fill(~mask[:, None], -1) >= 0).flatten(1).any(-1)
    words, phrases = words.masked_fill(has_phrases[:, None], -1), phrases.masked_fill(~has_phrases[:, None, None], -1)
    members = one_hot(torch.cat([phrases, words[:, None]], 1) + 1)[..., 1:]  # [B, V + 1, L, N]
    members = (members * mask[:, None, :, None]).mT.flatten(1, 2)
    return members.to(texts.tokens.dtype), members.any(-1)


def log_cosh(x: Tensor) -> Tensor:
    """Return log cosh x, without overflow."""
    return torch.logaddexp(x, -x) - math.log(2)


def hardest_negatives(s: Tensor, margin: float) -> Tensor:
    """Return the mean hinge loss of the rows, and that of the columns, with the diagonal as positives."""
    wrong = without(s, ~torch.eye(len(s), dtype=torch.bool, device=s.device))
    hardest = torch.stack([wrong.amax(0), wrong.amax(1)])
    return (margin + hardest - s.diagonal()).relu().mean(1).sum()


@torch.no_grad()
def region_labels(similarity: Tensor, mask: Tensor, regions: Tensor) -> Tensor:
    """Return LOUPE's labels I'(R) of regions, [B, M], from the cosines of words and patches, [B, L, P].

    In the game "the largest cosine of a word with a patch", removing a coalition costs d_t if it contains all of T_t.
    I(R) is therefore the sum, over words and over all t for which two or more of T_t are in R, of d_t divided by
    1 + the number of T_t outside R. The factor 1 / 2L has no effect on I'.
    """
    d, best = _steps(similarity)
    inside = torch.einsum("bmp,blpt->blmt", regions.to(d.dtype), best)
    share = (inside >= 2) / (1 + best.sum(-2)[:, :, None] - inside)
    interaction = torch.einsum("bl,blt,blmt->bm", mask.to(d.dtype), d, share) / regions.sum(-1)
    low, high = interaction.amin(-1, keepdim=True), interaction.amax(-1, keepdim=True)
    return torch.where(high > low, (interaction - low) / (high - low), 1)


@torch.no_grad()
def pair_labels(similarity: Tensor, mask: Tensor) -> Tensor:
    """Return LOUPE's labels I'_ij of regions and phrases, [B, M, N], from their cosines; `mask` has the real phrases.

    I_ij is the value of region i in the game "the largest cosine with phrase j", divided by N, plus the value of phrase
    j in the game "the largest cosine with region i", divided by M. The factor 1 / 2 has no effect on I'.
    """
    real = mask[:, None].expand(similarity.shape)
    of_regions, of_phrases = _values(similarity.mT, real.mT).mT, _values(similarity, real)
    found = of_regions / mask.sum(-1)[:, None, None] + of_phrases / similarity.shape[1]
    found = found.clamp_min(0).masked_fill(~real, 0)
    return found / found.sum(1, keepdim=True).clamp_min(1e-12)


def _values(x: Tensor, mask: Tensor) -> Tensor:
    """Return the Shapley values of v(S) = max of x over S: all members of T_t get the same share of d_t."""
    d, best = _steps(x)
    best = best * mask[..., None]  # The levels of players outside the mask only split steps, which changes no sum.
    return torch.einsum("bkt,bkit->bki", d / best.sum(-2).clamp_min(1), best)


def _steps(x: Tensor) -> tuple[Tensor, Tensor]:
    """Sort x_(1) >= .. >= x_(n) and let x_(n+1) = 0, the maximum over nobody.

    Returns:
        The differences d_t = x_(t) - x_(t+1), [B, K, n], and 1 for each member i of T_t = {i: x_i >= x_(t)},
        [B, K, n, n].
    """
    levels = x.sort(-1, descending=True).values
    d = -levels.diff(append=torch.zeros_like(levels[..., :1]))
    return d, (x[..., :, None] >= levels[..., None, :]).to(x.dtype)
