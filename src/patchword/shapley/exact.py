"""Exact values and interactions in polynomial time. They use the identity in the package's docstring."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from patchword.shapley.game import (
    DEFAULT,
    Game,
    Side,
    Worth,
    _absent,
    _check_choice,
    _check_fixed,
    _check_regions,
    _count,
    _credit,
    _mask,
    _prepare,
    _real,
    _region_part,
    _sizes,
    _sort,
)


def airport_values(
    x: Float[Tensor, "*n N"], mask: Bool[Tensor, "*n N"] | None = None, game: Game = DEFAULT
) -> Float[Tensor, "*n N"]:
    """Value of each of N players in the game v(S) = max_{i in S} x_i: sum over t >= rank(i) of d_t E[t-1].

    The Shapley values of a row sum to max(x) - empty. O(N log N) per row.

    Args:
        x: The worth of each player alone, in rows.
        mask: True for real players, False for others. None if all are real.
        game: The index, the weights, and the max over no player.

    Raises:
        UserError: If the shape of `mask` does not fit.
    """
    mask = _mask("mask", mask, x.shape, x.device)
    order, levels = _sort(x.masked_fill(~mask, 0), mask, game.empty)
    return _credit(order, levels, _absent(game.index, _sizes(x) - 1)).masked_fill(~mask, 0)


def patch_values(
    similarity: Float[Tensor, "*n P L"],
    mask: Bool[Tensor, "*n L"] | None = None,
    patch_mask: Bool[Tensor, "*n P"] | None = None,
    game: Game = DEFAULT,
    *,
    words: Side = "fixed",
) -> Float[Tensor, "*n P"]:
    """Value of every patch, where words are fixed or also players.

    With fixed words, the value is the mean over words of `airport_values`, plus the patch's similarity with its best
    word, both weighted. With words as players, a word's term counts only in contexts that contain it, E[t-1] - E[t]
    instead of E[t-1], and the patch's own term is the expected max over the words of a context,
    empty + sum_t d_t (1 - E[t]). O(PL log(PL)). The package's docstring describes the arguments.
    """
    _check_choice("words", words, Side)
    _check_fixed(game)
    x, mask, patch_mask = _prepare(similarity, mask, patch_mask)
    t = _sizes(x.mT)
    share = _absent(game.index, t - 1) - (_absent(game.index, t) if words == "players" else 0)
    shares = _credit(*_sort(x.mT, patch_mask[..., None, :], game.empty), share).masked_fill(~mask[..., None], 0)
    _, best = _sort(x, mask[..., None, :], game.empty)
    own = best[..., -1]
    if words == "players":
        own = game.empty + (best.diff(dim=-1) * (1 - _absent(game.index, _sizes(x)))).sum(-1)
    values = game.word_weight * shares.sum(-2) / _count(mask) + game.patch_weight * own / _count(patch_mask)
    return values.masked_fill(~(patch_mask & mask.any(-1, keepdim=True)), 0)


def word_values(
    similarity: Float[Tensor, "*n P L"],
    mask: Bool[Tensor, "*n L"] | None = None,
    patch_mask: Bool[Tensor, "*n P"] | None = None,
    game: Game = DEFAULT,
    *,
    patches: Side = "fixed",
) -> Float[Tensor, "*n L"]:
    """Value of every word, where `patches` are fixed or also players: `patch_values` with the sides exchanged."""
    _check_choice("patches", patches, Side)
    x, mask, patch_mask = _prepare(similarity, mask, patch_mask)
    exchanged = replace(game, word_weight=game.patch_weight, patch_weight=game.word_weight)
    return patch_values(x.mT, patch_mask, mask, exchanged, words=patches)


def pair_interactions(
    similarity: Float[Tensor, "*n P L"],
    mask: Bool[Tensor, "*n L"] | None = None,
    patch_mask: Bool[Tensor, "*n P"] | None = None,
    game: Game = DEFAULT,
) -> Float[Tensor, "*n P L"]:
    """Interaction of every pair {patch i, word j}, where patches and words are both players.

    Let C be the context. In the bracket v(C+i+j) - v(C+i) - v(C+j) + v(C), only two parts of v remain: what patch i
    adds to the best patch of word j, and what word j adds to the best word of patch i:

        I_ij = word_weight / L * airport_i(column j) + patch_weight / P * airport_j(row i)

    The Shapley interactions sum to v(all) if `game.empty` is 0 (otherwise, `game.empty` is subtracted from every max).
    They are never negative if no similarity is below `game.empty`. O(PL log(PL)), also with present normalizers (see
    `_present_part`). The package's docstring describes the arguments.
    """
    x, mask, patch_mask = _prepare(similarity, mask, patch_mask)
    part = _fixed_part if game.normalizer == "fixed" else _present_part
    words, patches = part(x.mT, patch_mask, mask, game), part(x, mask, patch_mask, game)
    return (game.word_weight * words.mT + game.patch_weight * patches).masked_fill(~_real(mask, patch_mask), 0)


def region_interactions(
    similarity: Float[Tensor, "*n P L"],
    regions: Bool[Tensor, "*n M P"],
    mask: Bool[Tensor, "*n L"] | None = None,
    patch_mask: Bool[Tensor, "*n P"] | None = None,
    game: Game = DEFAULT,
    *,
    worth: Worth = "presence",
    words: Side = "fixed",
) -> Float[Tensor, "*n M"]:
    """Interaction I([R]) inside regions of patches: the value of R as one player minus the values of its patches.

    I([R]) is the value of [R] among N-R+[R], minus the sum over x in R of the value of x among N-R+x. It is therefore
    the mean over contexts C without R of v(C+R) - sum_x v(C+x) + (|R|-1) v(C). Let rho of R's patches be in T_t. For
    "S meets T_t", the bracket is -max(rho - 1, 0) if C misses T_t, and 0 otherwise. For "N-S misses T_t", it is
    [rho >= 2] if N-R-C misses T_t, and 0 otherwise. Both C and N-R-C miss the s = t - rho other patches of T_t with
    probability E[s]:

        presence   v(S)              I = -word_weight / L * sum_words sum_t d_t max(rho - 1, 0) E[s]
        deletion   v(N) - v(N-S)     I = +word_weight / L * sum_words sum_t d_t [rho >= 2] E[s]

    With words as players, a word counts only in contexts that contain it: E[s] - E[s+1] instead of E[s]. The mean over
    patches contributes exactly zero to all of these. A region of fewer than two patches has interaction 0.

    The max is submodular. If no similarity is below `game.empty`, presence is never positive (the more redundant the
    patches of a region, the more negative) and deletion is never negative.

    Cost: one sort per word, then O(MPL) time in blocks of `BLOCK` elements (at least one word's MP). Only a few blocks
    exist at once, so memory does not grow with MPL. With autograd, the backward pass computes the blocks again.

    The package's docstring describes the arguments.
    """
    _check_regions(similarity, regions, worth, words)
    _check_fixed(game)

    def expected(outside: Tensor, *_: Tensor) -> Tensor:
        return _absent(game.index, outside) - (_absent(game.index, outside + 1) if words == "players" else 0)

    return game.word_weight * _region_part(similarity, regions, mask, patch_mask, worth, game.empty, expected, 1)


def _fixed_part(
    x: Float[Tensor, "*n K N"], mask: Bool[Tensor, "*n N"], rows: Bool[Tensor, "*n K"], game: Game
) -> Float[Tensor, "*n K N"]:
    """Interaction of each row k with each n in the game 1/K sum_{k in S} max_{n in S} x_kn."""
    order, levels = _sort(x, mask[..., None, :], game.empty)
    return _credit(order, levels, _absent(game.index, _sizes(x) - 1)) / _count(rows)[..., None]


def _present_part(
    x: Float[Tensor, "*n K N"], mask: Bool[Tensor, "*n N"], rows: Bool[Tensor, "*n K"], game: Game
) -> Float[Tensor, "*n K N"]:
    """Interaction of each row k with each n in the game with the mean over the rows in S instead of 1/K.

    Let g_kn be what n adds to row k of a context that contains c of the other K-1 rows. The bracket is
    g_kn / (c+1) - sum_{rows l in C} g_ln / (c (c+1)), and the rows in C are independent of g. With u = 1-q and
    e = E 1/(c+1) = (1 + u + .. + u^(K-1)) / K, the mean at q is

        e u^(t-1) for row k itself   and   -(e - u^(K-1)) / (K-1) u^(t-1) for every other row,

    per d_t. The mean over q replaces the powers of u by E[.].
    """
    order, levels = _sort(x, mask[..., None, :], game.empty)
    count, t = _count(rows)[..., None], _sizes(x).long()
    powers = _absent(game.index, torch.arange(sum(x.shape[-2:]), device=x.device, dtype=torch.float64))
    sums = torch.cat([powers.new_zeros(1), powers.cumsum(0)])
    own = (sums[t - 1 + count] - sums[t - 1]) / count
    other = (own - powers[t + count - 2]) / (count - 1).clamp_min(1)
    others = _credit(order, levels, other.to(x.dtype)).masked_fill(~rows[..., None], 0).sum(-2, keepdim=True)
    return _credit(order, levels, (own + other).to(x.dtype)) - others
