"""Metrics: retrieval, grounding and hard negatives, as torchmetrics modules."""
