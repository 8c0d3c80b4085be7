"""Checkpoint files that are whole or not there."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol
from lightning.pytorch.plugins.io import TorchCheckpointIO

from patchword.errors import InputError, TrainingError


class WholeFileIO(TorchCheckpointIO):
    """Writes `<path>.part` beside the old file and renames it when all of it is on the disk.

    Lightning's own keeps a second copy of the checkpoint in memory, and a third in the folder for temporary files,
    from which it is moved: on another file system that is a copy, which can be interrupted. URLs are left to it.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Save so that a process that is killed, or a disk that is full, leaves the file that was there before.

        Args:
            checkpoint: What `torch.save` takes.
            path: Where to; missing folders are made.
            storage_options: Refused, as by Lightning's own.

        Raises:
            TrainingError: The file cannot be written; the message says why and which checkpoint there still is.
        """
        if storage_options is not None or not _is_local_file_protocol(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        part = path.with_name(path.name + ".part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except (OSError, RuntimeError) as error:
            reason = _os_error(error)
            if reason is None:
                raise
            raise TrainingError(f"{path}: {reason.strerror}, so this checkpoint is not saved. {_kept(path)}") from error
        finally:
            with suppress(OSError):
                part.unlink()


def require_writable(folder: str | Path) -> None:
    """Find out before training whether checkpoints can be written.

    Raises:
        InputError: The folder cannot be made, or no file in it.
    """
    probe = Path(folder) / f".writable.{os.getpid()}"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"{folder}: {error.strerror}, so checkpoints cannot be saved there; choose another folder "
            "(--checkpoint.dirpath)"
        ) from error


def _os_error(error: BaseException | None) -> OSError | None:
    """The operating system's part in `error`: torch's writer raises a RuntimeError while it handles that one."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def _kept(path: Path) -> str:
    """What to resume from."""
    newest = max(path.parent.glob("*.ckpt"), key=lambda file: file.stat().st_mtime, default=None)
    kept = path if path.exists() else newest
    if kept is None:
        return "There is none before it: mend that and train again"
    return f"The one before it is kept: mend that, then resume with --ckpt_path {kept}"
