"""Metrics: retrieval, grounding and hard negatives, as torchmetrics modules over pure functions.

Each metric takes sample ids and counts each sample once, independently of ranks, batches and repeated samples.
"""

from patchword.metrics.grounding import Grounding
from patchword.metrics.hard_negatives import HardNegatives, pair_scores
from patchword.metrics.retrieval import Retrieval

__all__ = ["Grounding", "HardNegatives", "Retrieval", "pair_scores"]

DEFINITIONS = 2  # increased whenever the definition of a metric changes; numbers of two versions are not mixed
