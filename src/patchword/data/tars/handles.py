"""Read pieces of many files while keeping only a few of them open."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path


class Handles:
    """The at most `limit` open files of this process; the least recently used file is closed if there are more.

    Reads use offsets instead of the position in the file, so forked processes can continue to use the open files. A
    pickled copy opens its own files.
    """

    def __init__(self, limit: int = 64) -> None:
        self.limit = limit
        self._open: OrderedDict[Path, int] = OrderedDict()

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """Read `size` bytes of a file from `offset` on, or fewer if the file ends.

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
