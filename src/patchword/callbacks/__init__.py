"""Callbacks: alignment maps while training."""
