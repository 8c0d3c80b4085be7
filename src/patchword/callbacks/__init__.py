"""Callbacks: checkpoints, cost, alignment maps, predictions and results."""
