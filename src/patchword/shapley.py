"""Shapley and Banzhaf indices of max-similarity games: exact, sampled, and by brute force.

Players are the P patches of an image and the L words of a caption, A [P, L] their similarities. A coalition S is worth
what late interaction makes of it, the max over no player being `empty`:

    v(S) = word_weight / L * sum_{words j in S} max_{patches i in S} A_ij
         + patch_weight / P * sum_{patches i in S} max_{words j in S} A_ij

P and L count all real players ("fixed") or those in S ("present"). Where one side is "fixed", all its members belong to
every coalition and only the other side plays. A caption without words, or an image without patches, gets zeros.

The exact functions rest on one identity. Sort x_(1) >= .. >= x_(n) and let x_(n+1) = empty, d_t = x_(t) - x_(t+1) and
T_t be the best t players. For every S, the empty one too, and for any signs,

    max_{i in S} x_i = empty + sum_t d_t [S meets T_t].

All indices are linear in v, so they are sums over t of those of "S meets T_t", which depend on sizes only. A context
takes every other player with probability q; k given players are then all absent with probability (1-q)^k. Write E[k]
for its mean over q in [0, 1], 1 / (k+1) (Shapley), or its value at q = 1/2, 2^-k (Banzhaf).

Sources: values with one side fixed are those of the airport game (Littlechild and Owen, Management Science 20, 1973);
interaction indices of pairs are Grabisch and Roubens' (International Journal of Game Theory 28, 1999). The remaining
formulas are derived in the docstrings; the tests hold all of them against brute force and the package shapiq.

Everything is piecewise linear in A and differentiable by autograd (at ties, one of the valid gradients). Similarities
have 32 or 64 bits. What masked entries hold is arbitrary, NaN included, and the results there are zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from patchword.errors import InputError
from patchword.ops import masked_fill_min

Index = Literal["shapley", "banzhaf"]
Game = Literal["presence", "deletion"]
Normalizer = Literal["fixed", "present"]
Side = Literal["fixed", "players"]

BLOCK = 2**20  # elements of the largest temporary of regions and of sampling on a CPU; elsewhere 8 times as many
MAX_PLAYERS = 12  # of brute force: 4096 coalitions


def airport_values(
    x: Float[Tensor, "*n N"], mask: Bool[Tensor, "*n N"] | None = None, *, index: Index = "shapley", empty: float = 0.0
) -> Float[Tensor, "*n N"]:
    """Value of each of N players in the game v(S) = max_{i in S} x_i: sum over t >= rank(i) of d_t E[t-1].

    The Shapley values of a row sum to max(x) - empty. O(N log N) per row.

    Args:
        x: What each player alone is worth, in rows.
        mask: True for real players; None if all are.
        index: Shapley or Banzhaf values.
        empty: Worth of no player.

    Raises:
        InputError: If `index` is unknown or the shape of `mask` does not fit.
    """
    _check_choice("index", index, Index)
    mask = _mask("mask", mask, x.shape, x.device)
    order, levels = _sort(x.masked_fill(~mask, 0), mask, empty)
    return _credit(order, levels, _absent(index, _sizes(x) - 1)).masked_fill(~mask, 0)


def patch_values(
    similarity: Float[Tensor, "*n P L"],
    mask: Bool[Tensor, "*n L"] | None = None,
    patch_mask: Bool[Tensor, "*n P"] | None = None,
    *,
    words: Side = "fixed",
    index: Index = "shapley",
    word_weight: float = 0.5,
    patch_weight: float = 0.5,
    empty: float = 0.0,
) -> Float[Tensor, "*n P"]:
    """Value of every patch, the words being fixed or players, too.

    Fixed words: the mean over words of `airport_values`, and the patch's own best word. Words as players: a word's term
    counts only in contexts that hold it, E[t-1] - E[t] instead of E[t-1], and the patch's own term is the expected max
    over the words of a context, empty + sum_t d_t (1 - E[t]). O(PL log(PL)).

    Args:
        similarity: Of every patch with every word.
        mask: True for real words; None if all are.
        patch_mask: True for real patches; None if all are.
        words: Whether all words belong to every coalition or play, too.
        index: Shapley or Banzhaf values.
        word_weight: Weight of the mean over words of the best patch.
        patch_weight: Weight of the mean over patches of the best word.
        empty: The max over no player.

    Raises:
        InputError: If a choice is unknown or shapes do not fit.
    """
    _check_choice("index", index, Index)
    _check_choice("words", words, Side)
    x, mask, patch_mask = _prepare(similarity, mask, patch_mask)
    t = _sizes(x.mT)
    share = _absent(index, t - 1) - (_absent(index, t) if words == "players" else 0)
    shares = _credit(*_sort(x.mT, patch_mask[..., None, :], empty), share).masked_fill(~mask[..., None], 0)
    _, best = _sort(x, mask[..., None, :], empty)
    own = best[..., -1]
    if words == "players":
        own = empty + (best.diff(dim=-1) * (1 - _absent(index, _sizes(x)))).sum(-1)
    values = word_weight * shares.sum(-2) / _count(mask) + patch_weight * own / _count(patch_mask)
    return values.masked_fill(~(patch_mask & mask.any(-1, keepdim=True)), 0)


def word_values(
    similarity: Float[Tensor, "*n P L"],
    mask: Bool[Tensor, "*n L"] | None = None,
    patch_mask: Bool[Tensor, "*n P"] | None = None,
    *,
    patches: Side = "fixed",
    index: Index = "shapley",
    word_weight: float = 0.5,
    patch_weight: float = 0.5,
    empty: float = 0.0,
) -> Float[Tensor, "*n L"]:
    """Value of every word, the patches being fixed or players, too: `patch_values` with the sides exchanged.

    Args:
        similarity: Of every patch with every word.
        mask: True for real words; None if all are.
        patch_mask: True for real patches; None if all are.
        patches: Whether all patches belong to every coalition or play, too.
        index: Shapley or Banzhaf values.
        word_weight: Weight of the mean over words of the best patch.
        patch_weight: Weight of the mean over patches of the best word.
        empty: The max over no player.

    Raises:
        InputError: If a choice is unknown or shapes do not fit.
    """
    _check_choice("patches", patches, Side)
    x, mask, patch_mask = _prepare(similarity, mask, patch_mask)
    weights = {"word_weight": patch_weight, "patch_weight": word_weight}
    return patch_values(x.mT, patch_mask, mask, words=patches, index=index, empty=empty, **weights)


def pair_interactions(
    similarity: Float[Tensor, "*n P L"],
    mask: Bool[Tensor, "*n L"] | None = None,
    patch_mask: Bool[Tensor, "*n P"] | None = None,
    *,
    index: Index = "shapley",
    word_weight: float = 0.5,
    patch_weight: float = 0.5,
    empty: float = 0.0,
    normalizer: Normalizer = "fixed",
) -> Float[Tensor, "*n P L"]:
    """Interaction of every pair {patch i, word j}, patches and words both being players.

    With C the context, the bracket v(C+i+j) - v(C+i) - v(C+j) + v(C) leaves of the mean over words only what patch i
    adds to the best patch of word j, and likewise of the mean over patches:

        I_ij = word_weight / L * airport_i(column j) + patch_weight / P * airport_j(row i)

    The Shapley interactions sum to v(all) if `empty` is 0 (else every max counts less `empty`). They are never negative
    if no similarity is below `empty`. O(PL log(PL)), also with `normalizer="present"` (see `_present_part`).

    Args:
        similarity: Of every patch with every word.
        mask: True for real words; None if all are.
        patch_mask: True for real patches; None if all are.
        index: Shapley or Banzhaf interaction index.
        word_weight: Weight of the mean over words of the best patch.
        patch_weight: Weight of the mean over patches of the best word.
        empty: The max over no player.
        normalizer: Whether means divide by the number of all real players or of those in the coalition.

    Raises:
        InputError: If a choice is unknown or shapes do not fit.
    """
    _check_choice("index", index, Index)
    _check_choice("normalizer", normalizer, Normalizer)
    x, mask, patch_mask = _prepare(similarity, mask, patch_mask)
    part = _fixed_part if normalizer == "fixed" else _present_part
    words, patches = part(x.mT, patch_mask, mask, index, empty), part(x, mask, patch_mask, index, empty)
    return (word_weight * words.mT + patch_weight * patches).masked_fill(~_real(mask, patch_mask), 0)


def sampled_pair_interactions(
    similarity: Float[Tensor, "*n P L"],
    mask: Bool[Tensor, "*n L"] | None = None,
    patch_mask: Bool[Tensor, "*n P"] | None = None,
    *,
    samples: int,
    generator: torch.Generator | None = None,
    index: Index = "shapley",
    word_weight: float = 0.5,
    patch_weight: float = 0.5,
    empty: float = 0.0,
) -> Float[Tensor, "*n P L"]:
    """Unbiased Monte Carlo estimate of `pair_interactions` with fixed normalizers.

    All pairs of the whole batch share `samples` contexts (see `_contexts`), each pair's own two players left out. All
    that the bracket needs of a context are the best two patches of each word and the best two words of each patch.
    O(samples * PL) after sorting, in chunks of `BLOCK` elements (no less than one context of the whole batch); autograd
    keeps two places per context and row or column.

    Args:
        similarity: Of every patch with every word.
        mask: True for real words; None if all are.
        patch_mask: True for real patches; None if all are.
        samples: Number of contexts.
        generator: Source of the contexts; None for torch's global one on the CPU.
        index: Shapley or Banzhaf interaction index.
        word_weight: Weight of the mean over words of the best patch.
        patch_weight: Weight of the mean over patches of the best word.
        empty: The max over no player.

    Raises:
        InputError: If a choice is unknown, shapes do not fit or `samples` is not positive.
    """
    _check_choice("index", index, Index)
    x, mask, patch_mask = _prepare(similarity, mask, patch_mask)
    with_patch, with_word = _contexts(x, samples, index, generator)
    if not x.numel():
        return x
    words = _sampled_part(x.mT, patch_mask, mask, with_patch, empty)
    patches = _sampled_part(x, mask, patch_mask, with_word, empty)
    return (word_weight * words.mT + patch_weight * patches).masked_fill(~_real(mask, patch_mask), 0)


def brute_force_pair_interactions(
    similarity: Float[Tensor, "*n P L"],
    mask: Bool[Tensor, "*n L"] | None = None,
    patch_mask: Bool[Tensor, "*n P"] | None = None,
    *,
    index: Index = "shapley",
    word_weight: float = 0.5,
    patch_weight: float = 0.5,
    empty: float = 0.0,
    normalizer: Normalizer = "fixed",
) -> Float[Tensor, "*n P L"]:
    """`pair_interactions` from the definition, by enumerating all coalitions of at most 12 real players.

    I_ij = sum over C without i and j of w(C) (v(C+i+j) - v(C+i) - v(C+j) + v(C)), with the w of `_context_weights`.

    Args:
        similarity: Of every patch with every word.
        mask: True for real words; None if all are.
        patch_mask: True for real patches; None if all are.
        index: Shapley or Banzhaf interaction index.
        word_weight: Weight of the mean over words of the best patch.
        patch_weight: Weight of the mean over patches of the best word.
        empty: The max over no player.
        normalizer: Whether means divide by the number of all real players or of those in the coalition.

    Raises:
        InputError: If a choice is unknown, shapes do not fit or there are more than 12 players.
    """
    _check_choice("index", index, Index)
    _check_choice("normalizer", normalizer, Normalizer)
    found = torch.zeros_like(similarity)
    for at, patches, words in _real_players(*_prepare(similarity, mask, patch_mask)[1:]):
        members = _coalitions(len(patches) + len(words)).to(similarity.device)
        x = similarity[at][patches][:, words]
        v = _worth(x, members, word_weight, patch_weight, empty, normalizer)
        for i, patch in enumerate(patches):
            for j, word in enumerate(words):
                with_i, with_j = 2**i, 2 ** (len(patches) + j)
                c = (~(members[:, i] | members[:, len(patches) + j])).nonzero()[:, 0]
                bracket = v[c + with_i + with_j] - v[c + with_i] - v[c + with_j] + v[c]
                found[(*at, patch, word)] = (_context_weights(index, members[c], 2).to(v) * bracket).sum()
    return found


def region_interactions(
    similarity: Float[Tensor, "*n P L"],
    regions: Bool[Tensor, "*n M P"],
    mask: Bool[Tensor, "*n L"] | None = None,
    patch_mask: Bool[Tensor, "*n P"] | None = None,
    *,
    game: Game = "presence",
    index: Index = "shapley",
    words: Side = "fixed",
    word_weight: float = 0.5,
    empty: float = 0.0,
) -> Float[Tensor, "*n M"]:
    """Interaction I([R]) inside regions of patches: the value of R as one player, less those of its patches alone.

    I([R]) = value of [R] among N-R+[R], less the sum over x in R of the value of x among N-R+x; so it is the mean over
    contexts C without R of v(C+R) - sum_x v(C+x) + (|R|-1) v(C). Let rho of R's patches be in T_t. For "S meets T_t",
    the bracket is -max(rho - 1, 0) if C misses T_t, else 0; for "N-S misses T_t", it is [rho >= 2] if N-R-C misses T_t,
    else 0. Either misses the s = t - rho other patches of T_t with probability E[s]:

        presence   v(S)              I = -word_weight / L * sum_words sum_t d_t max(rho - 1, 0) E[s]
        deletion   v(N) - v(N-S)     I = +word_weight / L * sum_words sum_t d_t [rho >= 2] E[s]

    With words as players, a word counts only in contexts that hold it: E[s] - E[s+1] instead of E[s]. The mean over
    patches contributes exactly zero to all of these. A region of fewer than two patches has interaction 0.

    The max is submodular: if no similarity is below `empty`, presence is never positive (the more redundant the patches
    of a region, the more negative) and deletion never negative.

    Cost: one sort per word, then O(MPL) time in blocks of `BLOCK` elements (no less than one word's MP), of which a few
    live at once: memory does not grow with MPL. With autograd, the backward pass computes the blocks once more.

    Args:
        similarity: Of every patch with every word.
        regions: True for the patches of each of M regions.
        mask: True for real words; None if all are.
        patch_mask: True for real patches; None if all are. Regions lose their other patches.
        game: Whether a coalition of patches is worth what it brings or what its removal costs.
        index: Shapley or Banzhaf values.
        words: Whether all words belong to every coalition or play, too.
        word_weight: Weight of the mean over words of the best patch.
        empty: The max over no player.

    Raises:
        InputError: If a choice is unknown or shapes do not fit.
    """
    _check_regions(similarity, regions, game, index, words)

    def expected(outside: Tensor, *_: Tensor) -> Tensor:
        return _absent(index, outside) - (_absent(index, outside + 1) if words == "players" else 0)

    return word_weight * _region_part(similarity, regions, mask, patch_mask, game, empty, expected, 1)


def sampled_region_interactions(
    similarity: Float[Tensor, "*n P L"],
    regions: Bool[Tensor, "*n M P"],
    mask: Bool[Tensor, "*n L"] | None = None,
    patch_mask: Bool[Tensor, "*n P"] | None = None,
    *,
    samples: int,
    generator: torch.Generator | None = None,
    game: Game = "presence",
    index: Index = "shapley",
    words: Side = "fixed",
    word_weight: float = 0.5,
    empty: float = 0.0,
) -> Float[Tensor, "*n M"]:
    """Unbiased Monte Carlo estimate of `region_interactions`.

    All regions of the whole batch share `samples` contexts (see `_contexts`), each without the region's own patches.
    What the bracket needs of a context is its best patch, per word: the share of contexts whose best patch is outside
    T_t stands for E[s]. O(samples * MPL) time in blocks of `BLOCK` elements, once more in the backward pass.

    Args:
        similarity: Of every patch with every word.
        regions: True for the patches of each of M regions.
        mask: True for real words; None if all are.
        patch_mask: True for real patches; None if all are. Regions lose their other patches.
        samples: Number of contexts.
        generator: Source of the contexts; None for torch's global one on the CPU.
        game: Whether a coalition of patches is worth what it brings or what its removal costs.
        index: Shapley or Banzhaf values.
        words: Whether all words belong to every coalition or play, too.
        word_weight: Weight of the mean over words of the best patch.
        empty: The max over no player.

    Raises:
        InputError: If a choice is unknown, shapes do not fit or `samples` is not positive.
    """
    _check_regions(similarity, regions, game, index, words)
    with_patch, with_word = _contexts(similarity, samples, index, generator)
    counted = with_word if words == "players" else torch.ones_like(with_word)
    size = max(1, min(samples, _block(similarity) // max(1, regions.shape[-1] * regions.shape[-2])))
    place = _places(with_patch)

    def observed(_: Tensor, member: Tensor, order: Tensor, word: Tensor) -> Tensor:
        rows, patches, count = member.shape
        counts = torch.zeros(rows, count, patches + 1, dtype=similarity.dtype, device=member.device)
        for some, weights in zip(
            with_patch.to(place.dtype).split(size, -1), counted.to(counts.dtype).split(size, -1), strict=True
        ):
            best = ((place * some[order])[:, :, None, :] * ~member[..., None]).amax(1).long()
            counts.scatter_add_(-1, best, weights[word][:, None, :].expand(best.shape))
        return counts.cumsum(-1)[..., :-1].mT / samples

    return word_weight * _region_part(similarity, regions, mask, patch_mask, game, empty, observed, size)


def brute_force_region_interactions(
    similarity: Float[Tensor, "*n P L"],
    regions: Bool[Tensor, "*n M P"],
    mask: Bool[Tensor, "*n L"] | None = None,
    patch_mask: Bool[Tensor, "*n P"] | None = None,
    *,
    game: Game = "presence",
    index: Index = "shapley",
    words: Side = "fixed",
    word_weight: float = 0.5,
    empty: float = 0.0,
    patch_weight: float = 0.5,
    normalizer: Normalizer = "fixed",
) -> Float[Tensor, "*n M"]:
    """`region_interactions` from the definition, by enumerating all coalitions of at most 12 real players.

    The value of p among N-R+p is the sum over C without R of w(C) (v(C+p) - v(C)), with the w of `_context_weights`.

    Args:
        similarity: Of every patch with every word.
        regions: True for the patches of each of M regions.
        mask: True for real words; None if all are.
        patch_mask: True for real patches; None if all are. Regions lose their other patches.
        game: Whether a coalition of patches is worth what it brings or what its removal costs.
        index: Shapley or Banzhaf values.
        words: Whether all words belong to every coalition or play, too.
        word_weight: Weight of the mean over words of the best patch.
        empty: The max over no player.
        patch_weight: Weight of the mean over patches of the best word. It matters to present normalizers only.
        normalizer: Whether means divide by the number of all real players or of those in the coalition.

    Raises:
        InputError: If a choice is unknown, shapes do not fit or there are more than 12 players.
    """
    _check_regions(similarity, regions, game, index, words)
    _check_choice("normalizer", normalizer, Normalizer)
    found = similarity.new_zeros(regions.shape[:-1])
    fixed = words == "fixed"
    for at, patches, own in _real_players(*_prepare(similarity, mask, patch_mask)[1:], words_play=not fixed):
        members = _coalitions(len(patches) + (0 if fixed else len(own))).to(similarity.device)
        everyone = torch.cat([members, members.new_ones(len(members), len(own))], -1) if fixed else members
        v = _worth(similarity[at][patches][:, own], everyone, word_weight, patch_weight, empty, normalizer)
        if game == "deletion":
            v = v[-1] - v.flip(0)  # the complement of coalition c is coalition 2^n - 1 - c
        for m, region in enumerate(regions[at]):
            inside = region[patches].nonzero()[:, 0].tolist()
            c = (~members[:, inside].any(-1)).nonzero()[:, 0]
            weights = _context_weights(index, members[c], len(inside)).to(v)
            alone = [2**i for i in inside]
            values = [(weights * (v[c + player] - v[c])).sum() for player in [sum(alone), *alone]]
            found[(*at, m)] = values[0] - sum(values[1:])
    return found


def _sort(
    x: Float[Tensor, "*n N"], mask: Bool[Tensor, "*m"], empty: float
) -> tuple[Int[Tensor, "*n N"], Float[Tensor, "*n N+1"]]:
    """The players by ascending x, and their levels: `empty`, then x in this order.

    Masked players come first, at the level `empty`: the differences of the levels are zero there, and N - a players
    stand at place a or above wherever they are not. x should hold no NaN.
    """
    levels, order = masked_fill_min(x, mask).sort(-1)
    levels = levels.masked_fill(torch.arange(x.shape[-1], device=x.device) < (~mask).sum(-1, keepdim=True), empty)
    return order, torch.cat([x.new_full((*x.shape[:-1], 1), empty), levels], -1)


def _block(x: Tensor) -> int:
    """Small blocks stay in a CPU's cache, large ones save launches on an accelerator."""
    return BLOCK if x.device.type == "cpu" else 8 * BLOCK


def _sizes(x: Float[Tensor, "... N"]) -> Float[Tensor, " N"]:
    """The size t of T_t, the players at or above each place of the ascending order: N, .., 1."""
    return torch.arange(x.shape[-1], 0, -1, device=x.device, dtype=x.dtype)


def _absent(index: Index, k: Tensor) -> Tensor:
    """E[k]: the probability that a context holds none of k given players."""
    return 1 / (k + 1) if index == "shapley" else torch.exp2(-k)


def _credit(
    order: Int[Tensor, "*n N"], levels: Float[Tensor, "*n N+1"], weight: Float[Tensor, "*m"]
) -> Float[Tensor, "*n N"]:
    """Each player's sum of weight * d over the places up to its own, in the players' own order."""
    sums = (levels.diff(dim=-1) * weight).cumsum(-1)
    return torch.zeros_like(sums).scatter(-1, order, sums)


def _fixed_part(
    x: Float[Tensor, "*n K N"], mask: Bool[Tensor, "*n N"], rows: Bool[Tensor, "*n K"], index: Index, empty: float
) -> Float[Tensor, "*n K N"]:
    """Interaction of each row k with each n in the game 1/K sum_{k in S} max_{n in S} x_kn."""
    return _credit(*_sort(x, mask[..., None, :], empty), _absent(index, _sizes(x) - 1)) / _count(rows)[..., None]


def _present_part(
    x: Float[Tensor, "*n K N"], mask: Bool[Tensor, "*n N"], rows: Bool[Tensor, "*n K"], index: Index, empty: float
) -> Float[Tensor, "*n K N"]:
    """Likewise with the mean over present rows.

    Let g_kn be what n adds to row k of a context that holds c of the other K-1 rows. The bracket is
    g_kn / (c+1) - sum_{rows l in C} g_ln / (c (c+1)), and the rows in C are independent of g. With u = 1-q and
    e = E 1/(c+1) = (1 + u + .. + u^(K-1)) / K, the mean at q is

        e u^(t-1) for row k itself   and   -(e - u^(K-1)) / (K-1) u^(t-1) for every other row,

    per d_t; the mean over q turns the powers of u into E[.].
    """
    order, levels = _sort(x, mask[..., None, :], empty)
    count, t = _count(rows)[..., None], _sizes(x).long()
    powers = _absent(index, torch.arange(sum(x.shape[-2:]), device=x.device, dtype=torch.float64))
    sums = torch.cat([powers.new_zeros(1), powers.cumsum(0)])
    own = (sums[t - 1 + count] - sums[t - 1]) / count
    other = (own - powers[t + count - 2]) / (count - 1).clamp_min(1)
    others = _credit(order, levels, other.to(x.dtype)).masked_fill(~rows[..., None], 0).sum(-2, keepdim=True)
    return _credit(order, levels, (own + other).to(x.dtype)) - others


def _contexts(
    similarity: Float[Tensor, "*n P L"], samples: int, index: Index, generator: torch.Generator | None
) -> tuple[Bool[Tensor, "P S"], Bool[Tensor, "L S"]]:
    """Who is in each context: everyone with probability q, 1/2 for Banzhaf, else one q from each of S slices of [0, 1].

    (The slices keep the estimate unbiased and lower its variance.) Drawn in an order in which more words, such as
    padding, change nothing for the first ones; on the CPU, so that no device changes them either.
    """
    if samples < 1:
        raise InputError(f"samples must be at least 1, not {samples}")
    device = torch.device("cpu") if generator is None else generator.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    q = torch.full((samples,), 0.5, device=device)
    if index == "shapley":
        q = (torch.arange(samples, device=device) + uniform(samples)) / samples
    patches = uniform(similarity.shape[-2], samples) < q
    words = uniform(similarity.shape[-1], samples) < q
    return patches.to(similarity.device), words.to(similarity.device)


def _places(present: Bool[Tensor, "N S"]) -> Int[Tensor, "N 1"]:
    """1, .., N as a column, in a small type: the largest temporaries hold nothing else."""
    dtype = torch.int16 if len(present) < 2**15 else torch.int32
    return torch.arange(1, len(present) + 1, device=present.device, dtype=dtype)[:, None]


def _sampled_part(
    x: Float[Tensor, "*n K N"],
    mask: Bool[Tensor, "*n N"],
    rows: Bool[Tensor, "*n K"],
    present: Bool[Tensor, "N S"],
    empty: float,
) -> Float[Tensor, "*n K N"]:
    """`_fixed_part` estimated from S contexts: the mean over them of what n adds to the best of row k without n.

    For n other than the best of the context, that is the sum of d from the best's place up to n's; for the best itself,
    its distance to the second best.
    """
    order, levels = _sort(x, mask[..., None, :], empty)
    place = torch.zeros_like(order, dtype=torch.int16).to(_places(present).dtype)
    place = place.scatter(-1, order, _places(present)[:, 0].expand(order.shape))[..., None]
    counts, gaps = torch.zeros_like(levels), torch.zeros_like(levels)
    for some in present.to(place.dtype).split(max(1, _block(x) // max(1, x.numel())), -1):
        places = place * some
        best = places.amax(-2, keepdim=True)
        second = places.masked_fill_(places == best, 0).amax(-2).long()
        best = best[..., 0, :].long()
        counts.scatter_add_(-1, best, counts.new_ones(()).expand(best.shape))
        gaps = gaps.scatter_add(-1, best, levels.gather(-1, best) - levels.gather(-1, second))
    sums = (levels.diff(dim=-1) * counts.cumsum(-1)[..., :-1]).cumsum(-1) + gaps[..., 1:]
    return torch.zeros_like(sums).scatter(-1, order, sums) / (present.shape[-1] * _count(rows)[..., None])


def _region_part(
    similarity: Float[Tensor, "*n P L"],
    regions: Bool[Tensor, "*n M P"],
    mask: Bool[Tensor, "*n L"] | None,
    patch_mask: Bool[Tensor, "*n P"] | None,
    game: Game,
    empty: float,
    share: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    samples: int,
) -> Float[Tensor, "*n M"]:
    """The formulas of `region_interactions` with word_weight 1.

    Args:
        similarity: Of every patch with every word.
        regions: True for the patches of each of M regions.
        mask: True for real words; None if all are.
        patch_mask: True for real patches; None if all are.
        game: `presence` or `deletion`.
        empty: The max over no player.
        share: What stands for E[s], [rows, P, M]; given s, who is in R [rows, P, M] and the patches [rows, P] of each
            place, and the word [rows] of each row.
        samples: How many times the elements of its result `share` needs.
    """
    x, mask, patch_mask = _prepare(similarity, mask, patch_mask)
    size, length, count = *x.shape[-2:], regions.shape[-2]
    batch = math.prod(x.shape[:-2])
    order, levels = _sort(x.mT, patch_mask[..., None, :], empty)
    table = regions.mT.reshape(batch * size, count)

    def block(d: Tensor, order: Tensor, row: Tensor) -> Tensor:
        member = table[order + (row // length * size)[:, None]]
        below = member.cumsum(1, dtype=d.dtype)
        inside = below[:, -1:] - below + member
        redundant = (inside - 1).clamp_min(0) if game == "presence" else (inside >= 2).to(d.dtype)
        outside = _sizes(d)[:, None] - inside
        return (d[..., None] * (redundant * share(outside, member, order, row % length))).sum(1)

    rows = max(1, _block(x) // max(1, size * count * samples))
    d = levels.diff(dim=-1).reshape(batch * length, size)
    places = order.reshape(batch * length, size)
    numbers = torch.arange(batch * length, device=x.device)
    run = partial(checkpoint, block, use_reentrant=False, preserve_rng_state=False) if d.requires_grad else block
    parts = d.new_zeros(len(d), count)
    for start in range(0, max(1, len(d)), rows):  # once even without words: the result stays part of the graph
        part = slice(start, start + rows)
        parts[part] = run(d[part], places[part], numbers[part])
    total = parts.reshape(*x.shape[:-2], length, count).masked_fill(~mask[..., None], 0).sum(-2)
    return (total if game == "deletion" else -total) / _count(mask)


def _coalitions(players: int) -> Bool[Tensor, "C n"]:
    """All subsets; player i is in coalition c if bit i of c is set."""
    return (torch.arange(2**players)[:, None] >> torch.arange(players)) % 2 == 1


def _context_weights(index: Index, contexts: Bool[Tensor, "C n"], left_out: int) -> Float[Tensor, " C"]:
    """w(C) = |C|! (m - |C|)! / (m + 1)! for Shapley, 2^-m for Banzhaf, with m = n - left_out possible members."""
    m = contexts.shape[-1] - left_out
    by_size = [1 / (math.comb(m, c) * (m + 1)) if index == "shapley" else 0.5**m for c in range(m + 1)]
    return torch.tensor(by_size, dtype=torch.float64)[contexts.sum(-1).cpu()]


def _worth(
    x: Float[Tensor, "P L"],
    members: Bool[Tensor, "C n"],
    word_weight: float,
    patch_weight: float,
    empty: float,
    normalizer: Normalizer,
) -> Float[Tensor, " C"]:
    """v of every coalition of patches and words, in this order, as the module's docstring writes it."""
    patches, words = members.split(list(x.shape), -1)

    def mean(terms: Tensor, present: Tensor) -> Tensor:
        count = present.sum(-1).clamp_min(1) if normalizer == "present" else present.shape[-1]
        return torch.where(present, terms, 0).sum(-1) / count

    low = torch.finfo(x.dtype).min
    best_patch = torch.where(patches.any(-1, keepdim=True), torch.where(patches[..., None], x, low).amax(1), empty)
    best_word = torch.where(words.any(-1, keepdim=True), torch.where(words[:, None], x, low).amax(2), empty)
    return word_weight * mean(best_patch, words) + patch_weight * mean(best_word, patches)


def _real_players(
    mask: Bool[Tensor, "*n L"], patch_mask: Bool[Tensor, "*n P"], words_play: bool = True
) -> Iterator[tuple[tuple[int, ...], list[int], list[int]]]:
    """For every sample that has both: its place in the batch, its real patches and its real words."""
    for at in torch.ones(mask.shape[:-1]).nonzero().tolist() if mask.dim() > 1 else [[]]:
        patches, words = (m[tuple(at)].nonzero()[:, 0].tolist() for m in (patch_mask, mask))
        players = len(patches) + (len(words) if words_play else 0)
        if players > MAX_PLAYERS:
            raise InputError(f"brute force takes at most {MAX_PLAYERS} players, not {players}: use the exact functions")
        if patches and words:
            yield tuple(at), patches, words


def _prepare(
    similarity: Float[Tensor, "*n P L"], mask: Bool[Tensor, "*n L"] | None, patch_mask: Bool[Tensor, "*n P"] | None
) -> tuple[Float[Tensor, "*n P L"], Bool[Tensor, "*n L"], Bool[Tensor, "*n P"]]:
    """The similarities with 0 where masked, and both masks, True where they were None."""
    _check_similarity(similarity)
    *lead, patches, words = similarity.shape
    mask = _mask("mask", mask, (*lead, words), similarity.device)
    patch_mask = _mask("patch_mask", patch_mask, (*lead, patches), similarity.device)
    return similarity.masked_fill(~_real(mask, patch_mask), 0), mask, patch_mask


def _mask(name: str, mask: Tensor | None, shape: tuple[int, ...], device: torch.device) -> Tensor:
    if mask is None:
        return torch.ones(shape, dtype=torch.bool, device=device)
    if mask.shape != shape or mask.dtype != torch.bool:
        raise InputError(f"{name} must be boolean of shape {list(shape)}, not {mask.dtype} of {list(mask.shape)}")
    return mask


def _real(mask: Bool[Tensor, "*n L"], patch_mask: Bool[Tensor, "*n P"]) -> Bool[Tensor, "*n P L"]:
    return patch_mask[..., :, None] & mask[..., None, :]


def _count(mask: Bool[Tensor, "*n N"]) -> Int[Tensor, "*n 1"]:
    """How many are real, at least 1."""
    return mask.sum(-1, keepdim=True).clamp_min(1)


def _check_choice(name: str, value: Any, choices: Any) -> None:
    if value not in get_args(choices):
        raise InputError(f"{name} must be one of {', '.join(get_args(choices))}, not {value!r}")


def _check_similarity(similarity: Tensor) -> None:
    if similarity.dim() < 2 or not similarity.is_floating_point():
        found = f"{similarity.dtype} of {list(similarity.shape)}"
        raise InputError(f"similarity must be floating point of shape [.., patches, words], not {found}")


def _check_regions(similarity: Tensor, regions: Tensor, game: Game, index: Index, words: Side) -> None:
    _check_choice("game", game, Game)
    _check_choice("index", index, Index)
    _check_choice("words", words, Side)
    _check_similarity(similarity)
    *lead, patches, _ = similarity.shape
    shape = tuple(regions.shape)
    if regions.dtype != torch.bool or len(shape) != len(lead) + 2 or (*shape[:-2], shape[-1]) != (*lead, patches):
        expected = [*lead, "regions", patches]
        raise InputError(f"regions must be boolean of shape {expected}, not {regions.dtype} of {list(shape)}")
