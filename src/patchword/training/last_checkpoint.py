"""Finds the last checkpoint in the folder of a run."""

from __future__ import annotations

from pathlib import Path

from patchword.errors import UserError

PLACES = ("checkpoints/last.ckpt", "fit/checkpoints/last.ckpt", "last.ckpt")  # relative to the folder


def find(path: Path, name: str) -> Path:
    """Return `path` if it is a checkpoint, or the last checkpoint of the run in this folder.

    Messages call the path `name`, as the user specified it, such as `--ckpt runs/demo`.

    Raises:
        UserError: If there is no checkpoint.
    """
    if path.is_dir():
        for place in PLACES:
            if (path / place).is_file():
                return path / place
        raise UserError(
            f"{name}: the folder has neither {' nor '.join(PLACES)}; give the folder of a run or a checkpoint file"
        )
    if not path.is_file():
        raise UserError(f"{name}: there is no such file or folder")
    return path
