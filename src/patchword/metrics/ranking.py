"""Average precision and area under the ROC curve of many rankings at once, exact in the presence of ties."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int32, Int64
from torch import Tensor

_BLOCK = 2**21  # pixels at a time on an accelerator


def pixel_ranking(
    scores: Float[Tensor, "M X"],
    positive: Bool[Tensor, "N X"],
    pairs: tuple[Int[Tensor, " K"], Int[Tensor, " K"]] | None = None,
) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"]]:
    """Average precision and AUROC of rankings of pixels, as scikit-learn defines them.

    Equal scores form a group that is retrieved at once: for AP, a positive has the precision at the end of its group;
    for AUROC, a positive and a negative in the same group count one half.

    Args:
        scores: Higher scores are ranked first. They are compared in single precision.
        positive: True for the pixels that should be ranked first.
        pairs: The row of `scores` and the row of `positive` of each ranking; None for pairs of equal rows. A row of
            scores is sorted only once if it ranks several rows of positives.

    Returns:
        AP (0 for rows without a positive) and AUROC (0.5 for rows without a positive or without a negative).
    """
    if pairs is None:
        every = torch.arange(len(scores), device=scores.device)
        pairs = every, every
    if scores.device.type == "cpu":
        # One row at a time stays in the processor's cache, and numpy sorts and searches faster than torch.
        found = _by_row(scores.numpy(), positive.numpy(), *(rows.numpy() for rows in pairs))
        return torch.from_numpy(found[0]), torch.from_numpy(found[1])
    step = max(1, _BLOCK // scores.shape[1])
    blocks = zip(*(rows.split(step) for rows in pairs), strict=True)
    parts = [at_once(scores[row], positive[other]) for row, other in blocks]
    nothing = scores.new_zeros(0, dtype=torch.float)
    return torch.cat([nothing, *(ap for ap, _ in parts)]), torch.cat([nothing, *(auroc for _, auroc in parts)])


def _by_row(
    scores: Float[np.ndarray, "M X"],
    positive: Bool[np.ndarray, "N X"],
    row: Int[np.ndarray, " K"],
    other: Int[np.ndarray, " K"],
) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, " K"]]:
    ap, auroc = np.zeros(len(row), np.float32), np.full(len(row), 0.5, np.float32)
    users = np.bincount(row, minlength=len(scores))
    shared = {int(number): _groups(scores[number]) for number in np.flatnonzero(users > 1)}
    length = scores.shape[1]
    for k, (m, n) in enumerate(zip(row.tolist(), other.tolist(), strict=True)):
        if m in shared:
            lower, first, won = _shared_places(*shared[m], positive[n])
        else:
            lower, first, won = _places(scores[m], positive[n])
        count = len(lower)
        if count:
            ap[k] = ((count - first) / (length - lower)).mean()
        if 0 < count < length:
            auroc[k] = won / (count * (length - count))
    return ap, auroc


def _places(
    scores: Float[np.ndarray, " X"], positive: Bool[np.ndarray, " X"]
) -> tuple[Int[np.ndarray, " K"], Int[np.ndarray, " K"], float]:
    """What AP and AUROC need, for a row that ranks one row of positives.

    Returns:
        For each positive in ascending order, the number of pixels below its group and the number of positives below its
        group; and the number of negatives below all positives, with one half for those that tie.
    """
    # The sort order is that of scores, then that of flags: in a group, the negatives come before the positives.
    keys = _order(scores)
    keys <<= 1
    keys |= positive
    keys.sort()
    place = np.flatnonzero((keys & 1).astype(bool))
    first = np.arange(len(place))
    won = place.sum() - first.sum()  # the negatives that are below each positive or tie with it
    found = keys[place]
    tied = np.flatnonzero(found - keys[place - 1] < 2)  # with a negative or another positive
    if len(tied) and place[tied[0]] == 0:
        tied = tied[1:]  # there is no key before the first
    group = found[tied] & ~np.int32(1)
    place[tied], first[tied] = keys.searchsorted(group), found.searchsorted(group)
    return place, first, float(won + place.sum() - first.sum()) / 2


def _groups(scores: Float[np.ndarray, " X"]) -> tuple[Int32[np.ndarray, " X"], Int32[np.ndarray, " X"]]:
    """For each pixel, the number of pixels below its group, and this number plus the number up to its group's end."""
    order = scores.argsort()
    ordered = scores[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    ends = np.append(starts[1:], len(scores))
    lower, both = np.empty((2, len(scores)), np.int32)
    lower[order] = starts.repeat(ends - starts)
    both[order] = (starts + ends).repeat(ends - starts)
    return lower, both


def _shared_places(
    lower: Int32[np.ndarray, " X"], both: Int32[np.ndarray, " X"], positive: Bool[np.ndarray, " X"]
) -> tuple[Int[np.ndarray, " K"], Int[np.ndarray, " K"], float]:
    """The results of `_places`, for a row whose groups are known."""
    own = np.sort(lower[positive])
    starts = np.flatnonzero(own[1:] != own[:-1]) + 1
    starts = np.append(0, starts)[: len(own)]
    first = starts.repeat(np.diff(starts, append=len(own)))
    return own, first, float((both[positive].sum(dtype=np.int64) - len(own) ** 2) / 2)


def _order(scores: Float[np.ndarray, " X"]) -> Int32[np.ndarray, " X"]:
    """Integers in the order of the scores, between -2**30 and 2**30, so that there is room for a flag.

    The scores are divided by a power of two, which changes neither their order nor ties, except for numbers below 1e-38
    times the largest one. If there is an infinity, the scores are replaced by their ranks.
    """
    low, high = scores.min(initial=0), scores.max(initial=0)
    if not np.isfinite(high - low):
        scores = np.unique(scores, return_inverse=True)[1].astype(np.float32)
        low, high = np.float32(0), scores.max()
    power = max(int(np.frexp(max(-low, high))[1]), -126)
    scaled = scores * np.float32(2.0**-power)
    scaled += 0  # turns -0.0 into 0.0
    bits = scaled.view(np.int32)
    if low < 0:
        bits ^= bits >> 31 & 0x7FFFFFFF  # the bits of negative floats are in reverse order
    return bits


def at_once(
    scores: Float[Tensor, "N X"], positive: Bool[Tensor, "N X"]
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """`pixel_ranking` of all rows with few operations, for an accelerator."""
    rows, length = scores.shape
    keys = _keys(scores, positive).sort(-1).values.flatten()
    found = keys[keys & 1 == 1]  # the positives, row by row, in ascending order
    row, group = found >> 33, found >> 1 << 1
    end = (row + 1) * length
    positives = positive.sum(-1)
    last = positives.cumsum(0)[row]
    lower = torch.searchsorted(keys, group)  # the position of the first pixel of the positive's group
    lower_found = torch.searchsorted(found, group)
    higher = torch.searchsorted(keys, found, right=True)
    higher_found = torch.searchsorted(found, found, right=True)
    precision = (last - lower_found).double() / (end - lower)
    first = last - positives[row]
    below = (lower - row * length) - (lower_found - first)
    level = (higher - lower) - (higher_found - lower_found)
    nothing = torch.zeros(rows, dtype=torch.float64, device=scores.device)
    ap = nothing.index_add(0, row, precision) / positives.clamp_min(1)
    pairs = positives * (length - positives)
    won = nothing.index_add(0, row, below + level.double() / 2)
    auroc = torch.where(pairs > 0, won / pairs.clamp_min(1), 0.5)
    return ap.float(), auroc.float()


def _keys(scores: Float[Tensor, "N X"], positive: Bool[Tensor, "N X"]) -> Int64[Tensor, "N X"]:
    """Row, score and positive flag packed into one integer, in this order of significance."""
    bits = (scores.float() + 0.0).view(torch.int32)  # turns -0.0 into 0.0
    order = bits ^ (bits >> 31 & 0x7FFFFFFF)  # the bits of negative floats are in reverse order
    row = torch.arange(len(scores), device=scores.device)[:, None]
    return order.long().mul_(2).add_(positive).add_((row << 33) + 2**32)
