"""Metrics: retrieval, grounding and hard negatives, as torchmetrics modules over pure functions.

Each takes sample ids and counts each sample once, whatever ranks, batches and repeats it came in.
"""

from patchword.metrics.grounding import Grounding
from patchword.metrics.hard_negatives import HardNegatives, pair_scores
from patchword.metrics.retrieval import Retrieval

__all__ = ["Grounding", "HardNegatives", "Retrieval", "pair_scores"]

DEFINITIONS = 1  # raised whenever a metric comes to mean another thing; numbers of two versions are not mixed
