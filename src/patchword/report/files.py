"""Files of a report, whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from patchword.errors import InputError


def require_writable(folder: Path) -> None:
    """Make the folder where there is none.

    Raises:
        InputError: If it cannot be made, or no file can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".report.{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise InputError(f"--out {folder}: no report can be written there ({error.strerror})") from error


def write(path: Path, content: bytes) -> None:
    """Write a file.

    Raises:
        InputError: If it cannot be written.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_bytes(content)
        aside.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
