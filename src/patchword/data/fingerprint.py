"""What the samples of a split are, as a short text: what was computed from them can be kept under it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from patchword.errors import InputError
from patchword.spec import plain


def fingerprint(*parts: Any) -> str:
    """Sixteen hexadecimal digits that depend on plain data alone."""
    return hashlib.sha256(json.dumps(plain(parts), sort_keys=True).encode()).hexdigest()[:16]


def stamps(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """For each file its name, its bytes and the time of its last change in nanoseconds.

    Raises:
        InputError: If a file is missing.
    """
    found = []
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise InputError(f"there is no file {path} ({error.strerror})") from error
        found.append((path.name, status.st_size, status.st_mtime_ns))
    return found
