"""Fingerprints: short texts that identify the samples of a split, or weights."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from patchword.errors import UserError
from patchword.provenance.spec import plain


def fingerprint(*parts: Any) -> str:
    """A hash of plain data with sixteen hexadecimal digits."""
    return hashlib.sha256(json.dumps(plain(parts), sort_keys=True).encode()).hexdigest()[:16]


def stamps(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """The name, the size in bytes and the modification time in nanoseconds of each file.

    Raises:
        UserError: If a file is missing.
    """
    found = []
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise UserError(f"there is no file {path} ({error.strerror})") from error
        found.append((path.name, status.st_size, status.st_mtime_ns))
    return found


def weights_checksum(module: nn.Module) -> str:
    """A checksum of all parameters and buffers, as eight hexadecimal digits."""
    value = 0
    for name, tensor in module.state_dict().items():
        content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        value = zlib.crc32(content.numpy(), zlib.crc32(name.encode(), value))
    return f"{value:08x}"
