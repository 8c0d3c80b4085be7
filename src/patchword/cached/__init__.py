"""Heads on features of frozen towers: computed once, kept on disk, and read instead of images."""

from patchword.cached.datamodule import CachedFeatures

__all__ = ["CachedFeatures"]
