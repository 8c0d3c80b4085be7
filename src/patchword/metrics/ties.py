"""Compare scores: which of two scores is higher, and which scores differ by rounding only?

A bag-of-words model gives "a red cup, a blue book" and "a blue cup, a red book" the same score, and the order of
additions must not decide between them. The score of a pair is a sum of products. A cosine is a sum of products of unit
vectors, so its rounding error is a few `eps` (1.2e-7 in float32), even if the cosine itself is small: a tolerance
relative to the score would break ties of small cosines at random. The rounding error of a score much larger than 1,
such as a logit, is relative to the score. A tolerance of 1e-6 max(1, |a|, |b|) covers both cases: the largest
difference that the order of a caption's words made to a cosine in float32 was 2.4e-7, in 64 to 768 dimensions, for
means of word embeddings and for transformers without position embeddings. If all scores of an objective differ by less
than 1e-6, all comparisons are ties, and the number of ties shows this.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

ROUNDING = 1e-6


def beats(true: Float[Tensor, "*n"], other: Float[Tensor, "*n"]) -> Bool[Tensor, "*n"]:
    """Whether `true` is greater than `other` by more than rounding; False if either is NaN."""
    return true.float() - other.float() > tolerance(true, other)


def ties(true: Float[Tensor, "*n"], other: Float[Tensor, "*n"]) -> Bool[Tensor, "*n"]:
    """Whether the scores are equal up to rounding; False if either is NaN."""
    return (true.float() - other.float()).abs() <= tolerance(true, other)


def tolerance(a: Float[Tensor, "*n"], b: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """The largest difference between two scores that counts as rounding."""
    return ROUNDING * torch.maximum(a.float().abs(), b.float().abs()).clamp_min(1)
