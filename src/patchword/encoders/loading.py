"""Load models of the transformers library from the hub or from a folder, or build them from a configuration."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from patchword.errors import UserError
from patchword.files.printable import printable
from patchword.provenance.hub import Repository, explain, find

SIZES = re.compile(r"d_\w+|\w+_(size|dim|heads|kv)|n_(embd|head)|num_channels")  # names of sizes in configurations

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def find_model(name: str | None) -> Repository | None:
    """The folder or hub repository with the name `name`; None if `name` is None.

    Raises:
        UserError: If it does not exist; see `patchword.provenance.hub.find`.
    """
    if name is None:
        return None
    require_folder(name)
    return find(name, "model")


def where(model: Repository) -> dict[str, Any]:
    """The options of `from_pretrained` that select the commit of the model and disable code from its repository."""
    return {"revision": model.commit or "main", "local_files_only": not model.online, "trust_remote_code": False}


def pretrained(load: Callable[..., Any], model: Repository, **options: Any) -> Any:
    """Call `load`, a `from_pretrained` of transformers, for the model at its commit.

    Raises:
        UserError: If the model does not exist, cannot be downloaded, or is not in the format of transformers.
    """
    try:
        return load(model.name, **where(model), **options)
    except (UnpicklingError, SafetensorError) as error:
        raise UserError(weights_error(error, model.name)) from error
    except Exception as error:  # transformers raises many kinds of errors for hub responses and broken folders
        message = f"the model {model.name} needs code from its own repository, which patchword does not run"
        raise UserError(message if "custom code" in str(error) else explain(error, model.name, "model")) from error


def weights_error(error: Exception, name: str) -> str:
    """The message about unreadable weights, without the library's hint to load them in an unsafe way."""
    if "weights_only" in str(error).lower() or isinstance(error, UnpicklingError):
        what = "damaged, or are a pickle of more than tensors, which could run code"
        return f"the weights of {name} are {what}: nothing in the file was run. Convert the weights to safetensors"
    if "loading state_dict" in str(error):
        return f"the weights of {name} do not fit the model: {reason(error)}"
    return f"the weights of {name} are damaged, or the file does not contain weights: {printable(str(error))}"


def missing_error(source: str, model: str, missing: list[str], unexpected: Collection[str]) -> str:
    """The message about a file, folder or repository `source` that lacks the keys `missing` of `model`.

    `unexpected` are its keys that the model does not have.
    """
    unknown = f"; {len(unexpected)} of its keys are unknown, first {printable(min(unexpected))}" if unexpected else ""
    return (
        f"{source} does not have all weights of {model}: {len(missing)} are missing, first {missing[0]}{unknown}. Use "
        "weights of the same architecture, with the names that its library gives them"
    )


def read_config(model: Repository | None, config: dict[str, Any] | None) -> PretrainedConfig:
    """The configuration of `model`, or that of `config`: a `model_type` and all values that differ from its defaults.

    Raises:
        UserError: If not exactly one of the two is given, transformers does not know the `model_type`, or it does not
            accept a value of `config`.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    if (model is None) == (config is None):
        raise UserError("set either model (a hub name or a folder) or config (to start from random weights)")
    if model is not None:
        found = pretrained(AutoConfig.from_pretrained, model)
    else:
        options = dict(config or {})
        if "model_type" not in options:
            raise UserError('config needs a model_type, such as {"model_type": "bert", "hidden_size": 128}')
        kind = options.pop("model_type")
        if kind not in CONFIG_MAPPING:
            close = difflib.get_close_matches(str(kind), list(CONFIG_MAPPING), n=3)
            meant = f": did you mean {', '.join(close)}?" if close else ""
            raise UserError(f"transformers has no model_type {printable(str(kind))!r}{meant}")
        try:
            found = AutoConfig.for_model(kind, **options)
        except Exception as error:  # each configuration class has its own checks
            what = f"config: transformers does not accept these values for {kind}"
            raise UserError(f"{what} ({reason(error)})") from error
        _require_sizes(options, AutoConfig.for_model(kind), "config")
    _require_no_kernel(found)
    return found


def _require_sizes(typed: dict[str, Any], defaults: Any, place: str) -> None:
    """Refuse a size of less than 1 if the default is positive; transformers would fail or compute empty features."""
    for key, value in typed.items():
        default = getattr(defaults, key, None)
        if isinstance(value, dict) and hasattr(default, "model_type"):
            _require_sizes(value, default, f"{place}.{key}")
        elif SIZES.fullmatch(key) and isinstance(value, int) and value < 1 and isinstance(default, int) and default > 0:
            raise UserError(f"{place}.{key} must be 1 or more, not {value}")


def _require_no_kernel(config: Any) -> None:
    """Refuse attention or experts that are named `OWNER/NAME`: transformers would download their code."""
    for key, value in vars(config).items():
        if hasattr(value, "model_type"):
            _require_no_kernel(value)
        elif "_implementation" in key and "/" in str(value):
            raise UserError(
                f"{key.strip('_').removesuffix('_internal')} {printable(str(value))} is code from the hub, which "
                "patchword does not run: remove the option, or set it to sdpa or eager"
            )


def reason(error: Exception) -> str:
    """The message of an error on one short line."""
    return printable(" ".join(str(error).split()))


def require_folder(name: str) -> None:
    """Refuse a name that can only be a folder (it starts with `.`, `/` or `~`, or has several slashes) and is none.

    The hub's message would be misleading.
    """
    if (name.startswith((".", "/", "~")) or name.count("/") > 1) and not os.path.isdir(name):
        raise UserError(f"there is no folder {name}")


def load(
    model: Repository | None, config: PretrainedConfig, classes: dict[str, str], uses_pooler: bool = False
) -> PreTrainedModel:
    """The weights of `model` in the class for this `config`; random weights if `model` is None.

    `classes` names the class of transformers by model type, for types where `AutoModel` is not the right class.

    Raises:
        UserError: If transformers has no class for `config`, or `model` lacks weights of the class (except for the
            pooler, unless `uses_pooler`).
    """
    import transformers

    name = classes.get(config.model_type)
    if name is None and type(config) not in transformers.MODEL_MAPPING:
        raise UserError(f"transformers has no class for {config.model_type} alone: use another model")
    if model is None:
        try:
            return getattr(transformers, name)(config) if name else transformers.AutoModel.from_config(config)
        except Exception as error:  # each model has its own checks
            raise UserError(f"config: transformers cannot build {config.model_type} ({reason(error)})") from error
    with quietly():
        kind = getattr(transformers, name or "AutoModel")
        options = {"config": config, "dtype": torch.float32, "output_loading_info": True}
        loaded, report = pretrained(kind.from_pretrained, model, **options)
    unexpected = report["unexpected_keys"]
    if missing := sorted(key for key in report["missing_keys"] if uses_pooler or not key.startswith("pooler.")):
        raise UserError(missing_error(model.name, type(loaded).__name__, missing, unexpected))
    return loaded


@contextmanager
def quietly() -> Iterator[None]:
    """Context in which transformers prints no tables of missing and unexpected weights, and no progress bars."""
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
