"""Unbiased Monte Carlo estimates of the exact interactions."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patchword.errors import UserError
from patchword.shapley.game import (
    DEFAULT,
    Game,
    Index,
    Side,
    Worth,
    _block,
    _check_fixed,
    _check_regions,
    _count,
    _prepare,
    _real,
    _region_part,
    _sort,
)


def sampled_pair_interactions(
    similarity: Float[Tensor, "*n P L"],
    mask: Bool[Tensor, "*n L"] | None = None,
    patch_mask: Bool[Tensor, "*n P"] | None = None,
    game: Game = DEFAULT,
    *,
    samples: int,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*n P L"]:
    """Unbiased Monte Carlo estimate of `pair_interactions` with fixed normalizers.

    All pairs of the batch share `samples` contexts (see `_contexts`), without the two players of each pair. The bracket
    needs only the best two patches of each word and the best two words of each patch of a context. O(samples * PL)
    after sorting, in blocks of `BLOCK` elements (at least one context of the batch). Autograd keeps two places per
    context and row or column. The package's docstring describes the arguments.
    """
    _check_fixed(game)
    x, mask, patch_mask = _prepare(similarity, mask, patch_mask)
    with_patch, with_word = _contexts(x, samples, game.index, generator)
    if not x.numel():
        return x
    words = _sampled_part(x.mT, patch_mask, mask, with_patch, game.empty)
    patches = _sampled_part(x, mask, patch_mask, with_word, game.empty)
    return (game.word_weight * words.mT + game.patch_weight * patches).masked_fill(~_real(mask, patch_mask), 0)


def sampled_region_interactions(
    similarity: Float[Tensor, "*n P L"],
    regions: Bool[Tensor, "*n M P"],
    mask: Bool[Tensor, "*n L"] | None = None,
    patch_mask: Bool[Tensor, "*n P"] | None = None,
    game: Game = DEFAULT,
    *,
    samples: int,
    generator: torch.Generator | None = None,
    worth: Worth = "presence",
    words: Side = "fixed",
) -> Float[Tensor, "*n M"]:
    """Unbiased Monte Carlo estimate of `region_interactions`.

    All regions of the batch share `samples` contexts (see `_contexts`), without the patches of each region. For each
    word, the bracket needs only the best patch of a context: the share of contexts whose best patch is outside T_t is
    the estimate of E[s]. O(samples * MPL) time in blocks of `BLOCK` elements, which the backward pass computes again.

    The package's docstring describes the arguments.
    """
    _check_regions(similarity, regions, worth, words)
    _check_fixed(game)
    with_patch, with_word = _contexts(similarity, samples, game.index, generator)
    counted = with_word if words == "players" else torch.ones_like(with_word)
    size = max(1, min(samples, _block(similarity) // max(1, regions.shape[-1] * regions.shape[-2])))
    place = _places(with_patch)

    def observed(_: Tensor, member: Tensor, order: Tensor, word: Tensor) -> Tensor:
        rows, patches, count = member.shape
        counts = torch.zeros(rows, count, patches + 1, dtype=similarity.dtype, device=member.device)
        blocks = with_patch.to(place.dtype).split(size, -1), counted.to(counts.dtype).split(size, -1)
        for some, weights in zip(*blocks, strict=True):
            best = ((place * some[order])[:, :, None, :] * ~member[..., None]).amax(1).long()
            counts.scatter_add_(-1, best, weights[word][:, None, :].expand(best.shape))
        return counts.cumsum(-1)[..., :-1].mT / samples

    return game.word_weight * _region_part(similarity, regions, mask, patch_mask, worth, game.empty, observed, size)


def _contexts(
    similarity: Float[Tensor, "*n P L"], samples: int, index: Index, generator: torch.Generator | None
) -> tuple[Bool[Tensor, "P S"], Bool[Tensor, "L S"]]:
    """The members of each context. Each player is a member with probability q.

    For Banzhaf indices q is 1/2. For Shapley indices one q is drawn from each of S slices of [0, 1]; slices keep the
    estimate unbiased and reduce its variance. Additional words, such as padding, do not change the contexts of the
    first ones. Numbers are drawn on the CPU by default, so that they do not depend on the device.
    """
    if samples < 1:
        raise UserError(f"samples must be at least 1, not {samples}")
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
    """1, .., N as a column, in a small integer type, because the largest temporaries contain only these numbers."""
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

    For n other than the best of the context, this is the sum of d from the place of the best up to that of n. For the
    best itself, it is its distance to the second best.
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
