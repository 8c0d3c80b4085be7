"""Interactions from their definition, by enumerating all coalitions. The fast functions are tested against them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from patchword.errors import UserError
from patchword.shapley.game import DEFAULT, Game, Index, Side, Worth, _check_regions, _prepare

MAX_PLAYERS = 12  # the limit of brute force, which is 4096 coalitions


def brute_force_pair_interactions(
    similarity: Float[Tensor, "*n P L"],
    mask: Bool[Tensor, "*n L"] | None = None,
    patch_mask: Bool[Tensor, "*n P"] | None = None,
    game: Game = DEFAULT,
) -> Float[Tensor, "*n P L"]:
    """`pair_interactions` from the definition, by enumerating all coalitions of at most 12 real players.

    I_ij = sum over C without i and j of w(C) (v(C+i+j) - v(C+i) - v(C+j) + v(C)), with w from `_context_weights`.

    Raises:
        UserError: If there are more than 12 players, or an argument is invalid (see the package's docstring).
    """
    found = torch.zeros_like(similarity)
    for at, patches, words in _real_players(*_prepare(similarity, mask, patch_mask)[1:]):
        members = _coalitions(len(patches) + len(words)).to(similarity.device)
        x = similarity[at][patches][:, words]
        v = _worth(x, members, game)
        for i, patch in enumerate(patches):
            for j, word in enumerate(words):
                with_i, with_j = 2**i, 2 ** (len(patches) + j)
                c = (~(members[:, i] | members[:, len(patches) + j])).nonzero()[:, 0]
                bracket = v[c + with_i + with_j] - v[c + with_i] - v[c + with_j] + v[c]
                found[(*at, patch, word)] = (_context_weights(game.index, members[c], 2).to(v) * bracket).sum()
    return found


def brute_force_region_interactions(
    similarity: Float[Tensor, "*n P L"],
    regions: Bool[Tensor, "*n M P"],
    mask: Bool[Tensor, "*n L"] | None = None,
    patch_mask: Bool[Tensor, "*n P"] | None = None,
    game: Game = DEFAULT,
    *,
    worth: Worth = "presence",
    words: Side = "fixed",
) -> Float[Tensor, "*n M"]:
    """`region_interactions` from the definition, by enumerating all coalitions of at most 12 real players.

    The value of p among N-R+p is the sum over C without R of w(C) (v(C+p) - v(C)), with w from `_context_weights`.

    Raises:
        UserError: If there are more than 12 players, or an argument is invalid (see the package's docstring).
    """
    _check_regions(similarity, regions, worth, words)
    found = similarity.new_zeros(regions.shape[:-1])
    fixed = words == "fixed"
    for at, patches, own in _real_players(*_prepare(similarity, mask, patch_mask)[1:], words_play=not fixed):
        members = _coalitions(len(patches) + (0 if fixed else len(own))).to(similarity.device)
        everyone = torch.cat([members, members.new_ones(len(members), len(own))], -1) if fixed else members
        v = _worth(similarity[at][patches][:, own], everyone, game)
        if worth == "deletion":
            v = v[-1] - v.flip(0)  # the complement of coalition c is coalition 2^n - 1 - c
        for m, region in enumerate(regions[at]):
            inside = region[patches].nonzero()[:, 0].tolist()
            c = (~members[:, inside].any(-1)).nonzero()[:, 0]
            weights = _context_weights(game.index, members[c], len(inside)).to(v)
            alone = [2**i for i in inside]
            values = [(weights * (v[c + player] - v[c])).sum() for player in [sum(alone), *alone]]
            found[(*at, m)] = values[0] - sum(values[1:])
    return found


def _coalitions(players: int) -> Bool[Tensor, "C n"]:
    """All subsets. Player i is in coalition c if bit i of c is set."""
    return (torch.arange(2**players)[:, None] >> torch.arange(players)) % 2 == 1


def _context_weights(index: Index, contexts: Bool[Tensor, "C n"], left_out: int) -> Float[Tensor, " C"]:
    """w(C) = |C|! (m - |C|)! / (m + 1)! for Shapley, 2^-m for Banzhaf, with m = n - left_out possible members."""
    m = contexts.shape[-1] - left_out
    by_size = [1 / (math.comb(m, c) * (m + 1)) if index == "shapley" else 0.5**m for c in range(m + 1)]
    return torch.tensor(by_size, dtype=torch.float64)[contexts.sum(-1).cpu()]


def _worth(x: Float[Tensor, "P L"], members: Bool[Tensor, "C n"], game: Game) -> Float[Tensor, " C"]:
    """v of every coalition of patches and words, in this order, as the package's docstring defines it."""
    patches, words = members.split(list(x.shape), -1)

    def mean(terms: Tensor, present: Tensor) -> Tensor:
        count = present.sum(-1).clamp_min(1) if game.normalizer == "present" else present.shape[-1]
        return torch.where(present, terms, 0).sum(-1) / count

    low = torch.finfo(x.dtype).min
    best_patch = torch.where(patches.any(-1, keepdim=True), torch.where(patches[..., None], x, low).amax(1), game.empty)
    best_word = torch.where(words.any(-1, keepdim=True), torch.where(words[:, None], x, low).amax(2), game.empty)
    return game.word_weight * mean(best_patch, words) + game.patch_weight * mean(best_word, patches)


def _real_players(
    mask: Bool[Tensor, "*n L"], patch_mask: Bool[Tensor, "*n P"], words_play: bool = True
) -> Iterator[tuple[tuple[int, ...], list[int], list[int]]]:
    """For every sample with patches and words: its position in the batch, its real patches and its real words."""
    for at in torch.ones(mask.shape[:-1]).nonzero().tolist() if mask.dim() > 1 else [[]]:
        patches, words = (m[tuple(at)].nonzero()[:, 0].tolist() for m in (patch_mask, mask))
        players = len(patches) + (len(words) if words_play else 0)
        if players > MAX_PLAYERS:
            raise UserError(f"brute force allows at most {MAX_PLAYERS} players, not {players}: use the exact functions")
        if patches and words:
            yield tuple(at), patches, words
