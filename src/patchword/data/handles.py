"""Read pieces of many files with few of them open."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path


class Handles:
    """Open files of this process, the least recently used closed when there are too many.

    Pieces are read at their offset, not at a position that a file would remember, so that processes which a fork made
    out of this one can go on with its open files. Processes that get a copy open their own.

    Args:
        limit: Number of files that may be open.
    """

    def __init__(self, limit: int = 64) -> None:
        self.limit = limit
        self._open: OrderedDict[Path, int] = OrderedDict()

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """`size` bytes of a file from `offset` on; fewer where the file ends.

        Raises:
            OSError: If the file cannot be opened or read.
        """
        if path not in self._open:
            if len(self._open) == self.limit:
                os.close(self._open.popitem(last=False)[1])
            self._open[path] = os.open(path, os.O_RDONLY)
        self._open.move_to_end(path)
        return os.pread(self._open[path], size, offset)

    def __reduce__(self) -> tuple[type[Handles], tuple[int]]:
        return Handles, (self.limit,)

    def __del__(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])
