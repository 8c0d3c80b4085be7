"""Train heads on features of frozen towers that are computed once and stored on disk."""

from patchword.cached.cached_features import CachedFeatures

__all__ = ["CachedFeatures"]
