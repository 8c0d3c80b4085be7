"""Do the maps of two phrases of a caption fit their own regions better than each other's?

Let a and b be two phrases of a caption whose regions, R_a and R_b, have an IoU below 0.5, and let m_a(R) be the mean of
the upsampled map of a over the region R. The pair is right if

    m_a(R_a) + m_b(R_b) > m_a(R_b) + m_b(R_a),

so that exchanging the two maps makes them fit worse. A tie counts one half. `swap_accuracy` is the share of right pairs
of each image, averaged over the images that have a pair.

If two phrases have the same map, their pair is a tie. So every map that does not depend on the phrase, such as the
center prior or the mean training map, has a `swap_accuracy` of exactly 0.5, and so does chance on average. Adding the
same map to all maps of an image does not change it, so a bias for the center neither helps nor harms.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from patchword.metrics.targets import Targets

LARGEST_IOU = 0.5  # regions that overlap at least this much do not form a pair
_ROUNDING = 1e-9  # sums that differ by this share or less are a tie


def swaps(
    maps: Float[Tensor, "N P"], grid: tuple[int, int], targets: Targets
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """The number of each phrase's pairs that are right, and the number of its pairs. A pair counts for both phrases.

    Args:
        maps: One value per patch, row by row; higher values belong to the phrase.
        grid: Rows and columns of the patches.
        targets: The phrases and their regions. Phrases that do not count form no pairs.

    Returns:
        The numbers; that of right pairs is NaN if a map has a value that is not finite.
    """
    one, other = targets.pairs
    union = targets.area[one] + targets.area[other] - targets.common
    valid = targets.counted[one] & targets.counted[other] & (targets.common < LARGEST_IOU * union)
    one, other = one[valid], other[valid]
    weight = targets.weights(grid)
    level = maps.double() - maps.double().amin(-1, keepdim=True)
    own = (level * weight).sum(-1)
    right = own[one] + own[other]
    wrong = (level[one] * weight[other]).sum(-1) + (level[other] * weight[one]).sum(-1)
    tie = (right - wrong).abs() <= _ROUNDING * torch.maximum(right, wrong)
    won = torch.where(tie, 0.5, (right > wrong).double()).masked_fill(~(right - wrong).isfinite(), torch.nan)
    nothing = torch.zeros(len(maps), dtype=torch.float64, device=maps.device)
    return nothing.index_add(0, one, won), nothing.index_add(0, one, torch.ones_like(won))
