"""Write files atomically."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any


@contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Context whose value is a temporary file that replaces `path` when the block ends.

    The temporary file is in the folder of `path`. It is flushed to the disk and then renamed. If the process is killed,
    the disk is full, or the block raises an exception, the previous file at `path` does not change. Every file that
    later steps rely on is written with this function. If `path` is a symbolic link, its target is replaced. Devices and
    pipes are written to directly.

    Args:
        path: The path of the file. Missing folders are created.
        mode: `w` for UTF-8 text, whose line ends are not converted, or `wb` for bytes.

    Raises:
        OSError: If the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    if path.exists() and not path.is_file():  # for example /dev/stdout or a pipe, which cannot be replaced
        with path.open(mode, **text) as file:
            yield file
        return
    path = path.resolve()  # a symbolic link is kept, and its target is replaced
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open(mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        with suppress(OSError):
            part.unlink()
