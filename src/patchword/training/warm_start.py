"""Starts a training from the encoder of another run."""

from __future__ import annotations

from pathlib import Path

from patchword.encoders.base import Encoder
from patchword.errors import UserError
from patchword.files.printable import printable
from patchword.training import checkpoint_file
from patchword.training.last_checkpoint import find


def load_encoder(encoder: Encoder, path: str) -> None:
    """Copy the weights of the encoder in a checkpoint: towers, heads and statistics, but nothing of the objective.

    Args:
        encoder: The encoder, with the same parts as the one in the checkpoint.
        path: A checkpoint of patchword, or the folder of a run, whose last checkpoint is read.

    Raises:
        UserError: If there is no such checkpoint, if it is damaged, or if its encoder has other weights.
    """
    name = f"model.fine_tuning.start_from: {path}"
    saved = checkpoint_file.read(find(Path(path), name), name)["state_dict"]
    weights = {key.removeprefix("encoder."): value for key, value in saved.items() if key.startswith("encoder.")}
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as error:
        reason = printable(" ".join(str(error).split()), 300)
        raise UserError(f"{name}: its encoder is not the one that is configured: {reason}") from error
