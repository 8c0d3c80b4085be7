"""Read `.npz` files from untrusted sources."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npz(path: Path, limit: int) -> dict[str, np.ndarray]:
    """All arrays of an `.npz` file by name.

    `np.load` allocates the size in the header of an array. This function first checks that the header agrees with the
    size in the zip directory, and that all arrays together fit into `limit` bytes. Arrays of Python objects are
    refused.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is not a valid `.npz` file, or its arrays are larger than `limit`.
    """
    found: dict[str, np.ndarray] = {}
    left = limit
    try:
        with zipfile.ZipFile(path) as members:
            for member in members.infolist():
                with members.open(member) as file:
                    array = _read(file, member.file_size, left)
                found[member.filename.removesuffix(".npy")] = array
                left -= array.nbytes
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile and numpy raise many kinds of errors for invalid files
        raise ValueError(str(error) or type(error).__name__) from error
    return found


def _read(file: Any, size: int, limit: int) -> np.ndarray:
    """Read an array of at most `limit` bytes from an open member, whose size is `size` in the zip directory."""
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"an array has the unsupported format version {version}")
    shape, is_fortran, dtype = _HEADERS[version](file)
    kind: Any = dtype
    if kind.hasobject or min(shape, default=1) < 0:
        raise ValueError("an array holds Python objects, or has a negative size")
    wanted = math.prod(shape) * kind.itemsize
    if wanted > limit:
        raise ValueError(f"its arrays are larger than {limit:,} bytes")
    if wanted != size - file.tell():
        raise ValueError("the size of an array differs from the size in its header")
    content = bytearray(file.read(wanted))
    if len(content) != wanted:
        raise ValueError("the file is truncated")
    if not wanted:
        return np.empty(shape, kind)
    return np.frombuffer(content, kind).reshape(shape, order="F" if is_fortran else "C")
