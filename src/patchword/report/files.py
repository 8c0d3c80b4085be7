"""Writing the files of a report."""

from __future__ import annotations

import os
from pathlib import Path

from patchword.errors import UserError
from patchword.files.atomic_write import atomic_write


def require_writable(folder: Path) -> None:
    """Create the folder if it does not exist, and check that files can be written to it.

    Raises:
        UserError: If the folder cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".report.{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UserError(f"--out {folder}: cannot write the report there ({error.strerror})") from error


def write(path: Path, content: bytes) -> None:
    """Write a file; if this fails, an existing file remains unchanged.

    Raises:
        UserError: If the file cannot be written.
    """
    try:
        with atomic_write(path, "wb") as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
