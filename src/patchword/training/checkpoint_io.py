"""Writes checkpoint files completely or not at all, and verifies them when it reads them."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO

from patchword.errors import TrainingError, UserError
from patchword.files.local_path import is_local
from patchword.training import checkpoint_file


class WholeFileIO(TorchCheckpointIO):
    """Writes complete files, and reads files as verified data, see `patchword.training.checkpoint_file`.

    It writes `<path>.part` in the same folder, and renames it when all of it is on the disk.

    Lightning's TorchCheckpointIO keeps a second copy of the checkpoint in memory and a third one in the folder for
    temporary files. If that folder is on another file system, the final move is a copy that can be interrupted.
    TorchCheckpointIO still handles URLs.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Save a checkpoint; if the process is killed or the disk is full, the previous file is unchanged.

        Missing folders are created. `storage_options` are refused, as TorchCheckpointIO does.

        Raises:
            TrainingError: The file cannot be written. The message says why, and which checkpoint still exists.
        """
        if storage_options is not None or not is_local(path):
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
            what = f"{path}: {reason.strerror}, so this checkpoint was not saved"
            raise TrainingError(f"{what}. {_kept(path)}") from error
        finally:
            with suppress(OSError):
                part.unlink()

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read tensors and plain data. Tensors of a local file are on the CPU, those of a URL on `map_location`.

        Raises:
            UserError: If `weights_only` is False, because the file could run code, or for the same reasons as
                `patchword.training.checkpoint_file.load`.
        """
        if weights_only is False:
            raise UserError(f"{path}: weights_only=False would run code from the checkpoint; remove this argument")
        if not is_local(path):
            return super().load_checkpoint(path, map_location, weights_only=True)
        return checkpoint_file.load(Path(path))


def verify_checkpoints(trainer: Trainer) -> None:
    """Let a trainer use `WholeFileIO`, unless it has another plugin for checkpoint files."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = WholeFileIO()


def require_writable(folder: str | Path) -> None:
    """Check before training that checkpoints can be written.

    Raises:
        UserError: The folder or a file in it cannot be created.
    """
    probe = Path(folder) / f".writable.{os.getpid()}"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"{folder}: {error.strerror}, so checkpoints cannot be saved there; choose another folder "
            "(--checkpoint.dirpath)"
        ) from error


def _os_error(error: BaseException | None) -> OSError | None:
    """The OSError that caused `error`: torch's writer raises a RuntimeError while it handles an OSError."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def _kept(path: Path) -> str:
    """A sentence that says which checkpoint to resume from."""
    newest = max(path.parent.glob("*.ckpt"), key=lambda file: file.stat().st_mtime, default=None)
    kept = path if path.exists() else newest
    if kept is None:
        return "There is no earlier checkpoint: fix the problem and train again"
    return f"The previous checkpoint was kept: fix the problem, then resume with --ckpt_path {kept}"
