"""Reads checkpoint files as tensors and plain data: no code in them is run, and damage is detected."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from packaging.version import InvalidVersion, Version
from torch import Tensor

from patchword.errors import UserError
from patchword.files.printable import printable

VERSION = "pytorch-lightning_version"
WEIGHTS = ("state_dict", "current_model_state")  # with weight averaging, state_dict holds the averages
NEEDED: dict[str, type] = {"hyper_parameters": dict, "state_dict": dict, "global_step": int}


def read(path: Path, name: str | None = None) -> dict[str, Any]:
    """Read a checkpoint of patchword.

    Messages call the file `name`, as the user specified it, such as `--ckpt runs/demo`; None for the path.

    Raises:
        UserError: For the same reasons as `load`, or if patchword did not write the checkpoint.
    """
    name = name or str(path)
    saved = load(path, name, mmap=True)
    for key, kind in NEEDED.items():
        if not isinstance(saved.get(key), kind):
            raise UserError(f"{name}: not a checkpoint of patchword: it has no {key}")
    if not {"encoder", "objective"} <= saved["hyper_parameters"].keys():
        raise UserError(f"{name}: not a checkpoint of patchword: its hyper_parameters name no encoder and objective")
    return saved


def load(path: Path, name: str | None = None, mmap: bool = False) -> dict[str, Any]:
    """Read an undamaged dictionary of tensors and plain data that `torch.save` has written; tensors are on the CPU.

    `torch.save` writes zip files with a CRC-32 checksum of each tensor, and `torch.load` ignores the checksums. This
    function verifies them. A file without checksums (torch omits them after
    `torch.serialization.set_crc32_options(False)`) is read with a warning.

    Messages call the file `name`; None for the path. With `mmap`, tensors are read only when they are needed, which
    uses less memory.

    Raises:
        UserError: The file does not exist, is not such a dictionary, contains anything that could run code, is damaged,
            has no valid version of Lightning, or has NaN or infinity in its weights.
    """
    name = name or str(path)
    if not path.is_file():
        raise UserError(
            f"{name}: {'this is a folder; name a file in it' if path.is_dir() else 'there is no such file'}"
        )
    _verify_checksums(path, name)
    try:
        saved = torch.load(path, weights_only=True, mmap=mmap, map_location="cpu")
    except Exception as error:  # torch may raise nearly any error on a file of another format
        raise UserError(f"{name}: {_reason(path, error)}") from error
    if not isinstance(saved, dict):
        kind = type(saved).__name__
        raise UserError(f"{name}: not a checkpoint of patchword: it holds a {kind} instead of a dictionary")
    _require_version(saved, name)
    _require_finite(saved, name)
    return saved


def _verify_checksums(path: Path, name: str) -> None:
    if not zipfile.is_zipfile(path):
        what = "not a checkpoint of patchword, or truncated"
        raise UserError(f"{name}: {what}: it is not a zip file as torch.save writes it")
    try:
        with zipfile.ZipFile(path) as file:
            parts = [part for part in file.infolist() if part.file_size]
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
                raise UserError(f"{name}: not a checkpoint of patchword: it is compressed")
            if parts and not any(part.CRC for part in parts):
                rank_zero_warn(f"{name} has no checksums, so damage cannot be detected")
                return
            broken = file.testzip()
    except UserError:
        raise
    except Exception as error:  # zipfile raises many kinds of errors on damaged files
        raise UserError(f"{name}: the file is damaged ({_first_line(error)}): {COPY}") from error
    if broken is not None:
        raise UserError(f"{name}: the file is damaged (the checksum of {printable(broken)} is wrong): {COPY}")


COPY = "restore it from a copy, or use an earlier checkpoint"


def _reason(path: Path, error: Exception) -> str:
    """The reason why torch refuses a file, without torch's hint to load it in an unsafe way."""
    try:
        asks = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # the file is not in torch's format
        asks = []
    if asks:
        names = printable(", ".join(sorted(asks)))
        return f"the file asks for {names}, which could run code. The file is refused, and no code was run"
    if "weights_only" in str(error):
        return "the file holds more than tensors and plain data. The file is refused, and no code was run"
    return f"not a checkpoint of patchword ({_first_line(error)})"


def _require_version(saved: dict[str, Any], name: str) -> None:
    version = str(saved.get(VERSION))
    try:
        Version(version)
    except InvalidVersion as error:
        raise UserError(
            f"{name}: not a checkpoint of patchword: its {VERSION} is {printable(version, 40)}, which is not a version"
        ) from error


def _require_finite(saved: dict[str, Any], name: str) -> None:
    """Refuse weights that are NaN or infinite. Negative infinity is allowed because masks contain it."""
    for state in WEIGHTS:
        weights = saved.get(state)
        for key, value in weights.items() if isinstance(weights, dict) else ():
            if not isinstance(value, Tensor) or not value.is_floating_point() or not value.numel():
                continue
            if not value.max() < torch.inf:  # the maximum of a tensor that contains a NaN is NaN
                raise UserError(
                    f"{name}: the weights of {printable(str(key))} in {state} are not finite (NaN or infinity): use an "
                    "earlier checkpoint"
                )


def _first_line(error: Exception) -> str:
    return printable((str(error).splitlines() or [type(error).__name__])[0])
