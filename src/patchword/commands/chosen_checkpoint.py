"""Finds the checkpoint that a command starts from: a typed path, a configured one, or the last or best of a run."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from patchword.commands.config_files import config_values, value_of
from patchword.errors import UserError
from patchword.training import checkpoint_file


def named(arguments: list[str]) -> tuple[str | None, str]:
    """The value of `ckpt_path` (None if it is not set), and how to refer to it in a message.

    A typed value has priority, wherever it is among the arguments. Otherwise the last configuration with the key is
    used.
    """
    typed = value_of("--ckpt_path", arguments)
    if typed is not None:
        return (None if typed == "null" else typed), f"--ckpt_path {typed}"
    found, name = None, ""
    for value in config_values(arguments):
        content = None
        with suppress(yaml.YAMLError, OSError):  # the parser will report it
            content = yaml.safe_load(Path(value).read_text(encoding="utf-8") if Path(value).is_file() else value)
        if isinstance(content, dict) and "ckpt_path" in content:
            found = content["ckpt_path"]
            name = f"ckpt_path {found} in {value}"
    return (None if found is None else str(found)), name


def in_folder(word: str, name: str, config: Any) -> Path:
    """The `last` or `best` checkpoint, as `word` says, in the folder of a run that its configuration determines.

    Messages refer to the checkpoint as `name`.

    Raises:
        UserError: The configuration does not determine a folder, or the folder has no such checkpoint.
    """
    folder = _folder(config)
    if folder is None:
        raise UserError(
            f"{name}: every run gets a new folder, which has no checkpoint yet: name the file, or the folder of an "
            "earlier run (--trainer.logger.version)"
        )
    last = folder / "last.ckpt"
    if not last.is_file():
        raise UserError(f"{name}: there is no {last}")
    if word == "last":
        return last
    states = checkpoint_file.read(last, name).get("callbacks", {}).values()
    best = {Path(state["best_model_path"]).name for state in states if state.get("monitor")} - {""}
    if len(best) != 1 or not (folder / min(best)).is_file():
        raise UserError(
            f"{name}: {last} does not record exactly one best checkpoint, which requires --checkpoint.monitor and "
            "--checkpoint.save_top_k during training; name the file instead"
        )
    return folder / best.pop()


def _folder(config: Any) -> Path | None:
    """The folder of a run's checkpoints; None if the logger chooses a new folder."""
    if config.checkpoint.dirpath is not None:
        return Path(config.checkpoint.dirpath)
    logger = config.trainer.logger
    logger = logger[0] if isinstance(logger, list) and logger else logger
    if not logger:
        return Path(config.trainer.default_root_dir or ".") / "checkpoints"
    options = logger.get("init_args", {}) if hasattr(logger, "get") else {}
    version = options.get("version")
    if version is None or options.get("save_dir") is None:
        return None
    run = version if isinstance(version, str) else f"version_{version}"
    return Path(options["save_dir"]) / (options.get("name") or "") / run / "checkpoints"
