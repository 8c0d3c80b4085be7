"""Models of the transformers library from the hub, from a folder, or fresh from a configuration."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from patchword.errors import InputError
from patchword.hub import Repository, explain, find

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def find_model(name: str | None) -> Repository | None:
    """The folder or the repository of the hub that `name` means; None for None.

    Raises:
        InputError: If there is none; see `patchword.hub.find`.
    """
    if name is None:
        return None
    require_folder(name)
    return find(name, "model")


def where(model: Repository) -> dict[str, Any]:
    """The options of transformers that mean the model at its commit."""
    return {"revision": model.commit or "main", "local_files_only": not model.online}


def pretrained(load: Callable[..., Any], model: Repository, **options: Any) -> Any:
    """`load`, a `from_pretrained` of transformers, of the model at its commit.

    Raises:
        InputError: If it is not there, cannot be had, or is not what transformers saves.
    """
    try:
        return load(model.name, **where(model), **options)
    except (OSError, ValueError) as error:  # transformers makes one of whatever the hub answers
        raise InputError(explain(error, model.name, "model")) from error


def read_config(model: Repository | None, config: dict[str, Any] | None) -> PretrainedConfig:
    """The configuration of `model`, or the one that `config` spells out.

    Args:
        model: What `find_model` has found.
        config: `model_type` and whatever differs from the defaults of that type.

    Raises:
        InputError: If not exactly one of the two is given, or `config` has no `model_type`.
    """
    from transformers import AutoConfig

    if (model is None) == (config is None):
        raise InputError("give either model (a hub name or a folder) or config (to start from random weights)")
    if model is not None:
        return pretrained(AutoConfig.from_pretrained, model)
    assert config is not None
    if "model_type" not in config:
        raise InputError('config needs a model_type, such as {"model_type": "bert", "hidden_size": 128}')
    rest = {key: value for key, value in config.items() if key != "model_type"}
    return AutoConfig.for_model(config["model_type"], **rest)


def require_folder(name: str) -> None:
    """Refuses a name that can only be a folder, if there is none: the hub would complain about its characters.

    Raises:
        InputError: If `name` starts with `.`, `/` or `~` or has several slashes and is no folder.
    """
    if (name.startswith((".", "/", "~")) or name.count("/") > 1) and not os.path.isdir(name):
        raise InputError(f"there is no folder {name}")


def load(model: Repository | None, config: PretrainedConfig, classes: dict[str, str]) -> PreTrainedModel:
    """The weights of `model` in the class for this `config`; random ones if `model` is None.

    Args:
        model: What `find_model` has found, or None.
        config: Of the part of the model that is wanted.
        classes: Names of transformers classes by model type, where `AutoModel` is not the right one.

    Raises:
        InputError: If a weight of the class is not in `model` (poolers apart).
    """
    import transformers

    name = classes.get(config.model_type)
    if model is None:
        return getattr(transformers, name)(config) if name else transformers.AutoModel.from_config(config)
    with quietly():
        kind = getattr(transformers, name or "AutoModel")
        loaded, report = pretrained(
            kind.from_pretrained, model, config=config, dtype=torch.float32, output_loading_info=True
        )
    if missing := sorted(key for key in report["missing_keys"] if not key.startswith("pooler.")):
        raise InputError(
            f"{model.name} has no weights for {missing[0]} and {len(missing) - 1} more: is it another model?"
        )
    return loaded


@contextmanager
def quietly() -> Iterator[None]:
    """In this block transformers prints no table of weights that a file has too many, or too few, and no progress."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
