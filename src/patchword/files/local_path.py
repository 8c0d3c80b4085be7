"""Tells paths of this machine's file system from URLs."""

from __future__ import annotations

from pathlib import Path

from fsspec.utils import get_protocol


def is_local(path: str | Path) -> bool:
    """Whether `path` is on a mounted file system, and not a URL such as `s3://bucket/run`."""
    return get_protocol(str(path)) == "file"
