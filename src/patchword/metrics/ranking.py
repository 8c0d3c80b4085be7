"""Average precision and area under the ROC curve, many rankings at once, exact under ties."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def pixel_ranking(
    scores: Float[Tensor, "N X"], positive: Bool[Tensor, "N X"]
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Average precision and AUROC of each row, as scikit-learn defines them.

    Equal scores form a group that is retrieved at once. So a positive counts the precision at the end of its
    group (AP), and a positive and a negative of one group count one half (AUROC).

    Args:
        scores: Higher is ranked first.
        positive: What should come first.

    Returns:
        AP, 0 for rows without a positive, and AUROC, 0.5 for rows without a positive or without a negative.
    """
    scores, order = scores.sort(-1, descending=True)
    hits = positive.gather(-1, order)
    start, end = _groups(scores)
    found = hits.cumsum(-1, dtype=torch.int32)
    positives, length = found[:, -1].double(), scores.shape[1]
    at_end = found.gather(-1, end)
    before = found.gather(-1, start) - hits.gather(-1, start).int()
    precision = at_end.double() / (end + 1)
    ap = (precision * hits).sum(-1) / positives.clamp_min(1)
    pairs = positives * (length - positives)
    won = ((before + at_end) * ~hits).sum(-1, dtype=torch.float64) / 2
    auroc = torch.where(pairs > 0, won / pairs.clamp_min(1), 0.5)
    return ap.float(), auroc.float()


def _groups(scores: Float[Tensor, "N X"]) -> tuple[Tensor, Tensor]:
    """For each position of sorted rows, the first and the last position with an equal score, both [N, X]."""
    differs = scores[:, 1:] != scores[:, :-1]
    edge = torch.ones_like(differs[:, :1])
    position = torch.arange(scores.shape[1], device=scores.device)
    start = torch.where(torch.cat([edge, differs], -1), position, 0).cummax(-1).values
    last = torch.where(torch.cat([differs, edge], -1), position, scores.shape[1])
    return start, last.flip(-1).cummin(-1).values.flip(-1)
