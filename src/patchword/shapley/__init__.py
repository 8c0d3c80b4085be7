"""Shapley and Banzhaf indices of max-similarity games: exact, sampled, and by brute force.

The players are the P patches of an image and the L words of a caption, and A [P, L] are their similarities. The worth
of a coalition S is the late interaction of its patches and words, where the max over no player is `empty`:

    v(S) = word_weight / L * sum_{words j in S} max_{patches i in S} A_ij
         + patch_weight / P * sum_{patches i in S} max_{words j in S} A_ij

The normalizers P and L count all real players ("fixed") or those in S ("present"). If one side is "fixed", all its
members belong to every coalition and only the members of the other side are players. A caption without words, or an
image without patches, gets zeros.

The functions share these arguments. Each raises `UserError` if a choice is unknown or not supported, or if shapes do
not fit.

    similarity   A [*n, P, L], with 32 or 64 bits; its masked entries may have any value, including NaN
    regions      True for the patches of each of M regions [*n, M, P]
    mask         True for real words, False for padding [*n, L]; None if all are real
    patch_mask   True for real patches [*n, P]; None if all are real. Other patches are removed from regions
    game         the index, the weights, and the max over no player
    worth        the worth of a coalition of patches: what it adds (`presence`) or what its removal costs (`deletion`)
    words        whether all words belong to every coalition (`fixed`) or are also `players`
    samples      the number of contexts of a Monte Carlo estimate, at least 1
    generator    the generator of the contexts; None for torch's global one on the CPU

The exact functions are based on one identity. Sort x_(1) >= .. >= x_(n) and let x_(n+1) = empty, let
d_t = x_(t) - x_(t+1), and let T_t be the best t players. For every S, including the empty one, and for any signs,

    max_{i in S} x_i = empty + sum_t d_t [S meets T_t].

All indices are linear in v, so they are sums over t of the indices of "S meets T_t", which depend only on sizes. A
context contains every other player with probability q, so k given players are all absent with probability (1-q)^k.
E[k] denotes the mean of this over q in [0, 1], 1 / (k+1) (Shapley), or its value at q = 1/2, 2^-k (Banzhaf).

Sources: values with one side fixed are those of the airport game (Littlechild and Owen, Management Science 20, 1973).
The interaction indices of pairs are by Grabisch and Roubens (International Journal of Game Theory 28, 1999). The
remaining formulas are derived in the docstrings. The tests compare all of them with brute force and the package shapiq.

All results are piecewise linear in A and differentiable by autograd (at ties, autograd returns one of the valid
gradients). They are zero for masked entries.

`masked.py` has estimates of the same interactions in another game, which encodes every coalition of patches and words.
"""

from patchword.shapley.brute_force import brute_force_pair_interactions, brute_force_region_interactions
from patchword.shapley.exact import airport_values, pair_interactions, patch_values, region_interactions, word_values
from patchword.shapley.game import Game, Index, Normalizer, Side, Worth
from patchword.shapley.masked import masked_pair_interactions, masked_region_interactions
from patchword.shapley.neural import Estimate, InteractionNetwork, certain_or_sampled, region_maps
from patchword.shapley.regions import RegionHead, boxes
from patchword.shapley.sampled import sampled_pair_interactions, sampled_region_interactions

__all__ = [
    "Estimate",
    "Game",
    "Index",
    "InteractionNetwork",
    "Normalizer",
    "RegionHead",
    "Side",
    "Worth",
    "airport_values",
    "boxes",
    "brute_force_pair_interactions",
    "brute_force_region_interactions",
    "certain_or_sampled",
    "masked_pair_interactions",
    "masked_region_interactions",
    "pair_interactions",
    "patch_values",
    "region_interactions",
    "region_maps",
    "sampled_pair_interactions",
    "sampled_region_interactions",
    "word_values",
]
