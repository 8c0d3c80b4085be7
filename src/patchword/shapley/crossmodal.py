"""Interactions of patches and words in a game that is played once with m sets of patches and n sets of words.

Hubert Baniecki, Maximilian Muschalik, Fabian Fumagalli, Barbara Hammer, Eyke Huellermeier, Przemyslaw Biecek.
Explaining Similarity in Vision-Language Encoders with Weighted Banzhaf Interactions (FIxLIP). NeurIPS 2025,
arXiv 2508.05430.

If images and texts are encoded separately, m sets of patches and n sets of words give m n values v(S, T) from m + n
passes of the towers. The interactions are the coefficients phi_pw of the least-squares fit

    (a)  v(S, T) ~ phi_0 + sum_p phi_p [p in S] + sum_w phi_w [w in T] + sum_pw phi_pw [p in S] [w in T]

over all m n pairs. If sets contain each player with probability 1/2, phi_pw converges to the Banzhaf interaction index
of p and w, which is exact for all subsets.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def crossmodal_interactions(
    values: Float[Tensor, "*n M N"], patches: Bool[Tensor, "M P"], words: Bool[Tensor, "N W"]
) -> Float[Tensor, "*n P W"]:
    """The interactions phi_pw (a). With fewer sets than players, it is the solution of smallest norm.

    The design is a product, so the fit is one on each side: phi = A+ V B+, with the pseudoinverses of A = [1 S] and
    B = [1 T].

    Args:
        values: The value of each set of patches with each set of words.
        patches: The patches of each set.
        words: The words of each set.
    """
    found = _design(patches) @ values.double() @ _design(words).mT
    return found[..., 1:, 1:].to(values.dtype)


def _design(sets: Bool[Tensor, "M P"]) -> Float[Tensor, "Q M"]:
    one = torch.ones(len(sets), 1, dtype=torch.float64, device=sets.device)
    return torch.linalg.pinv(torch.cat([one, sets.double()], -1))
