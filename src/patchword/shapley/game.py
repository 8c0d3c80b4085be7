"""The game, and the code that exact and sampled indices share: sorted players, levels, credits and checks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from patchword.errors import UserError
from patchword.ops import masked_fill_min

Index = Literal["shapley", "banzhaf"]
Worth = Literal["presence", "deletion"]
Normalizer = Literal["fixed", "present"]
Side = Literal["fixed", "players"]

BLOCK = 2**20  # elements of the largest temporary of regions and of sampling on a CPU; 8 times that on other devices


def _check_choice(name: str, value: Any, choices: Any) -> None:
    if value not in get_args(choices):
        raise UserError(f"{name} must be one of {', '.join(get_args(choices))}, not {value!r}")


@dataclass(frozen=True)
class Game:
    """A max-similarity game and an index of it. The package's docstring defines v.

    Attributes:
        index: Shapley or Banzhaf values and interactions.
        word_weight: Weight of the mean over words of the similarity with the best patch.
        patch_weight: Weight of the mean over patches of the similarity with the best word. It does not affect
            interactions inside regions with fixed normalizers.
        empty: The max over no player.
        normalizer: Whether means divide by the number of all real players (`fixed`) or of those in the coalition
            (`present`). Only `pair_interactions` and brute force support `present`.

    Raises:
        UserError: If `index` or `normalizer` is unknown.
    """

    index: Index = "shapley"
    word_weight: float = 0.5
    patch_weight: float = 0.5
    empty: float = 0.0
    normalizer: Normalizer = "fixed"

    def __post_init__(self) -> None:
        _check_choice("index", self.index, Index)
        _check_choice("normalizer", self.normalizer, Normalizer)


DEFAULT = Game()


def _sort(
    x: Float[Tensor, "*n N"], mask: Bool[Tensor, "*m"], empty: float
) -> tuple[Int[Tensor, "*n N"], Float[Tensor, "*n N+1"]]:
    """The players by ascending x, and their levels: `empty`, then x in this order.

    Masked players come first, with the level `empty`, so their differences of levels are zero. For real players, there
    are N - a players at place a or above. x must not contain NaN.
    """
    levels, order = masked_fill_min(x, mask).sort(-1)
    levels = levels.masked_fill(torch.arange(x.shape[-1], device=x.device) < (~mask).sum(-1, keepdim=True), empty)
    return order, torch.cat([x.new_full((*x.shape[:-1], 1), empty), levels], -1)


def _block(x: Tensor) -> int:
    """Elements of a block. Small blocks fit into a CPU's cache; large ones save launches on an accelerator."""
    return BLOCK if x.device.type == "cpu" else 8 * BLOCK


def _sizes(x: Float[Tensor, "... N"]) -> Float[Tensor, " N"]:
    """The size t of T_t, the players at or above each place of the ascending order: N, .., 1."""
    return torch.arange(x.shape[-1], 0, -1, device=x.device, dtype=x.dtype)


def _absent(index: Index, k: Tensor) -> Tensor:
    """E[k]: the probability that a context contains none of k given players."""
    return 1 / (k + 1) if index == "shapley" else torch.exp2(-k)


def _credit(
    order: Int[Tensor, "*n N"], levels: Float[Tensor, "*n N+1"], weight: Float[Tensor, "*m"]
) -> Float[Tensor, "*n N"]:
    """Each player's sum of weight * d over the places up to its own, in the original order of players."""
    sums = (levels.diff(dim=-1) * weight).cumsum(-1)
    return torch.zeros_like(sums).scatter(-1, order, sums)


def _region_part(
    similarity: Float[Tensor, "*n P L"],
    regions: Bool[Tensor, "*n M P"],
    mask: Bool[Tensor, "*n L"] | None,
    patch_mask: Bool[Tensor, "*n P"] | None,
    worth: Worth,
    empty: float,
    share: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    samples: int,
) -> Float[Tensor, "*n M"]:
    """The formulas of `region_interactions` with word_weight 1.

    `share` returns E[s] or an estimate of it, [rows, P, M], and needs `samples` times as many elements as its result.
    Its arguments are s, the membership in R [rows, P, M] and the patches [rows, P] of each place, and the word [rows]
    of each row.
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
        redundant = (inside - 1).clamp_min(0) if worth == "presence" else (inside >= 2).to(d.dtype)
        outside = _sizes(d)[:, None] - inside
        return (d[..., None] * (redundant * share(outside, member, order, row % length))).sum(1)

    rows = max(1, _block(x) // max(1, size * count * samples))
    d = levels.diff(dim=-1).reshape(batch * length, size)
    places = order.reshape(batch * length, size)
    numbers = torch.arange(batch * length, device=x.device)
    run = partial(checkpoint, block, use_reentrant=False, preserve_rng_state=False) if d.requires_grad else block
    parts = d.new_zeros(len(d), count)
    for start in range(0, max(1, len(d)), rows):  # one iteration even without words keeps the result in the graph
        part = slice(start, start + rows)
        parts[part] = run(d[part], places[part], numbers[part])
    total = parts.reshape(*x.shape[:-2], length, count).masked_fill(~mask[..., None], 0).sum(-2)
    return (total if worth == "deletion" else -total) / _count(mask)


def _prepare(
    similarity: Float[Tensor, "*n P L"], mask: Bool[Tensor, "*n L"] | None, patch_mask: Bool[Tensor, "*n P"] | None
) -> tuple[Float[Tensor, "*n P L"], Bool[Tensor, "*n L"], Bool[Tensor, "*n P"]]:
    """The similarities with 0 where masked, and both masks, which are all True if they were None."""
    _check_similarity(similarity)
    *lead, patches, words = similarity.shape
    mask = _mask("mask", mask, (*lead, words), similarity.device)
    patch_mask = _mask("patch_mask", patch_mask, (*lead, patches), similarity.device)
    return similarity.masked_fill(~_real(mask, patch_mask), 0), mask, patch_mask


def _mask(name: str, mask: Tensor | None, shape: tuple[int, ...], device: torch.device) -> Tensor:
    if mask is None:
        return torch.ones(shape, dtype=torch.bool, device=device)
    if mask.shape != shape or mask.dtype != torch.bool:
        raise UserError(f"{name} must be boolean of shape {list(shape)}, not {mask.dtype} of {list(mask.shape)}")
    return mask


def _real(mask: Bool[Tensor, "*n L"], patch_mask: Bool[Tensor, "*n P"]) -> Bool[Tensor, "*n P L"]:
    return patch_mask[..., :, None] & mask[..., None, :]


def _count(mask: Bool[Tensor, "*n N"]) -> Int[Tensor, "*n 1"]:
    """The number of real entries, at least 1."""
    return mask.sum(-1, keepdim=True).clamp_min(1)


def _check_similarity(similarity: Tensor) -> None:
    if similarity.dim() < 2 or not similarity.is_floating_point():
        found = f"{similarity.dtype} of {list(similarity.shape)}"
        raise UserError(f"similarity must be floating point of shape [.., patches, words], not {found}")


def _check_regions(similarity: Tensor, regions: Tensor, worth: Worth, words: Side) -> None:
    _check_choice("worth", worth, Worth)
    _check_choice("words", words, Side)
    _check_similarity(similarity)
    *lead, patches, _ = similarity.shape
    shape = tuple(regions.shape)
    if regions.dtype != torch.bool or len(shape) != len(lead) + 2 or (*shape[:-2], shape[-1]) != (*lead, patches):
        expected = [*lead, "regions", patches]
        raise UserError(f"regions must be boolean of shape {expected}, not {regions.dtype} of {list(shape)}")


def _check_fixed(game: Game) -> None:
    if game.normalizer != "fixed":
        supported = f"only pair_interactions and brute force support the normalizer {game.normalizer!r}"
        raise UserError(f"{supported}: use Game(normalizer='fixed')")
