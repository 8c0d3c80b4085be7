"""Unbiased estimates of interactions in the masked game, which encodes every coalition again.

The players are the patches of an image and the words of a caption. The worth of a coalition is the cosine of the global
embeddings of both, with all other players masked in the input:

    v(S) = cos(f(image with the patches of S), g(caption with the words of S))

This is the token-level game of LOUPE (arXiv 2208.02515), as recalled. Its indices have no closed form, and every
coalition costs encoder passes. But both sides are encoded separately, so that m coalitions of patches and n of words
have m n worths and cost m + n passes. This is from FIxLIP (Baniecki et al., arXiv 2508.05430), which fits a regression
to the worths, and only for Banzhaf interactions, because the patches and words of a context of a Shapley index are not
independent. The functions of this file sample contexts and weight them, and are unbiased for both indices.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patchword.errors import UserError
from patchword.features import Masked
from patchword.ops import normalize
from patchword.shapley.game import Index, Side, Worth, _check_choice
from patchword.shapley.sampled import _contexts


def masked_region_interactions(
    images: Masked,
    texts: Masked,
    regions: Bool[Tensor, "B M P"],
    mask: Bool[Tensor, "B L"],
    *,
    samples: int,
    index: Index = "shapley",
    worth: Worth = "presence",
    words: Side = "players",
    generator: torch.Generator | None = None,
) -> Float[Tensor, "B M"]:
    """Interaction I([R]) inside regions of patches in the masked game; see `region_interactions` for its definition.

    All regions share `samples` contexts (see `_contexts`); C is a context without the patches of R. Each context has
    one patch p of R, which stands for all of them. They are drawn without replacement, until all have been drawn.

        presence   v(S)              I = E[v(C+R) - v(C) - |R| (v(C+p) - v(C))]
        deletion   v(N) - v(N-S)     I = E[v(C+R) - v(C) - |R| (v(C+R) - v(C+R-p))]

    The cost of a region of two or more patches is 3 `samples` passes of its image; that of a caption with such a region
    is `samples` passes, or one if words are fixed. Smaller regions, and all regions of captions without words, have
    interaction 0 and cost nothing. Memory holds one embedding per pass. All ranks must call this function.

    Args:
        images: Encodes the image of each pair again.
        texts: Encodes the caption of each pair again.
        regions: True for the patches of each of M regions.
        mask: True for real words, False for padding.
        samples: The number of contexts, at least 1.
        index: Shapley or Banzhaf interactions.
        worth: The worth of a coalition of patches: what it adds (`presence`) or what its removal costs (`deletion`).
        words: Whether words are `players`, or all belong to every coalition (`fixed`).
        generator: The generator of the contexts; None for torch's global one on the CPU.

    Raises:
        UserError: If a choice is unknown, or `samples` is less than 1.
    """
    _check_choice("index", index, Index)
    _check_choice("worth", worth, Worth)
    _check_choice("words", words, Side)
    shape = torch.zeros(regions.shape[-1], mask.shape[-1], device=mask.device)
    # Numbers for words come last, so that padding changes none of the others.
    rank = _ranks(1, regions.shape[-1], generator).to(mask.device)[0]
    with_patch, with_word = _contexts(shape, samples, index, generator)
    if words == "fixed":
        with_word = torch.ones_like(with_word[:, :1])
    pair, region = (mask.any(-1, keepdim=True) & (regions.sum(-1) >= 2)).nonzero().unbind(-1)
    members = regions[pair, region][:, None]  # [N, 1, P]
    size = members.sum(-1)
    number = members[..., rank.argsort()].cumsum(-1)[..., rank]  # of each member, in the random order of patches
    p = members & (number == torch.arange(samples, device=mask.device)[:, None] % size[..., None] + 1)  # [N, S, P]
    without = with_patch.mT & ~members
    single = without | p if worth == "presence" else without | (members & ~p)
    x = _embedded(images, pair, torch.stack([without | members, without, single], 2))
    caption, place = pair.unique(return_inverse=True)
    y = _embedded(texts, caption, mask[caption][:, None] & with_word.mT)[place]
    complete, none, changed = (x * y[:, :, None]).sum(-1).unbind(-1)
    each = changed - none if worth == "presence" else complete - changed
    found = x.new_zeros(regions.shape[:2])
    found[pair, region] = (complete - none - size * each).mean(-1)
    return found


def masked_pair_interactions(
    images: Masked,
    texts: Masked,
    patches: int,
    mask: Bool[Tensor, "B L"],
    *,
    samples: int,
    index: Index = "shapley",
    generator: torch.Generator | None = None,
) -> Float[Tensor, "B P L"]:
    """Interaction of every pair {patch i, word j} in the masked game, where patches and words are both players.

    The coalitions are the beginnings of random orders: m = `samples` (P + 1) of patches and n = `samples` (L + 1) of
    words. An order of patches in which a patches precede i, and an order of words in which b words precede j, have

        v(C+i+j) - v(C+i) - v(C+j) + v(C) = (f(a+1) - f(a)) . (g(b+1) - g(b))

    for the normalized embeddings f and g. Each pair of orders therefore has one context for every i and j. Its weight
    w(a, b) is the probability of this context for the index, divided by that of drawing it. The estimate is the mean
    over all `samples`^2 pairs of orders.

    The pairs are computed one after the other. Memory holds m + n embeddings.

    Args:
        images: Encodes the image of each pair again.
        texts: Encodes the caption of each pair again.
        patches: The number P of patches.
        mask: True for real words, False for padding. Interactions of padding are 0.
        samples: The number of orders of patches, and of words, at least 1.
        index: Shapley or Banzhaf interactions.
        generator: The generator of the orders; None for torch's global one on the CPU.

    Raises:
        UserError: If the index is unknown, or `samples` is less than 1.
    """
    _check_choice("index", index, Index)
    if samples < 1:
        raise UserError(f"samples must be at least 1, not {samples}")
    patch_rank, word_rank = (_ranks(samples, n, generator).to(mask.device) for n in (patches, mask.shape[1]))
    everyone = torch.ones(patches, dtype=torch.bool, device=mask.device)
    found = []
    for at, real in enumerate(mask):
        count = max(int(real.sum()), 1)
        rank = ((word_rank[:, None] < word_rank[..., None]) & real).sum(-1).clamp_max(count - 1)  # among real words
        x, y = _gains(images, at, patch_rank, everyone), _gains(texts, at, rank, real)
        weights = _weights(patches, count, index).to(x)
        of_orders = [
            torch.einsum("pd,sld,psl->pl", gains, y, weights[place][:, rank])
            for gains, place in zip(x, patch_rank, strict=True)
        ]
        found.append((torch.stack(of_orders).sum(0) / samples**2).masked_fill(~real, 0))
    return torch.stack(found)


def _ranks(samples: int, players: int, generator: torch.Generator | None) -> Int[Tensor, "S K"]:
    """The place of each player in random orders."""
    device = torch.device("cpu") if generator is None else generator.device
    return torch.rand(samples, players, generator=generator, device=device).argsort(-1)


def _gains(side: Masked, at: int, rank: Int[Tensor, "S K"], mask: Bool[Tensor, " K"]) -> Float[Tensor, "S K D"]:
    """What each real player adds to the normalized embedding of the real players before it, in every order."""
    start = torch.arange(int(rank.max()) + 2, device=mask.device)[:, None]
    x = _embedded(side, rank.new_tensor([at]), ((rank[:, None] < start) & mask)[None])[0].diff(dim=1)
    return x.gather(1, rank[..., None].expand(-1, -1, x.shape[-1]))


def _embedded(side: Masked, at: Int[Tensor, " N"], keep: Bool[Tensor, "N *k K"]) -> Float[Tensor, "N *k D"]:
    """The normalized embeddings of many coalitions of each image or text, with at least 32 bits."""
    rows = at.repeat_interleave(math.prod(keep.shape[1:-1]))
    x = side(rows, keep.flatten(0, -2))
    x = x if x.dtype == torch.float64 else x.float()
    return normalize(x).reshape(*keep.shape[:-1], x.shape[-1])


def _weights(patches: int, words: int, index: Index) -> Float[Tensor, "P L"]:
    """w(a, b) = P L (P-1 over a) (L-1 over b) w(C), with w(C) of a context of a + b players.

    w(C) is 1 / ((n-1) (n-2 over a+b)) for Shapley and 2^-(n-2) for Banzhaf interactions of n = P + L players.
    """
    n = patches + words
    a, b = torch.arange(patches, dtype=torch.float64)[:, None], torch.arange(words, dtype=torch.float64)

    def log_binomial(n: int, k: Tensor) -> Tensor:
        return math.lgamma(n + 1) - (k + 1).lgamma() - (n - k + 1).lgamma()

    context = -math.log(n - 1) - log_binomial(n - 2, a + b) if index == "shapley" else (2 - n) * math.log(2)
    return patches * words * (log_binomial(patches - 1, a) + log_binomial(words - 1, b) + context).exp()
