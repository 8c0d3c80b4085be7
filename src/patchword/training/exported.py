"""Reads the folders that `patchword export` writes, from a disk or from the Hugging Face hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from patchword.errors import UserError
from patchword.files.printable import printable
from patchword.provenance import hub

# What replaces the options of a tower whose weights are in a folder of their own. Its LoRA adapters are merged, its
# positions are stretched, and the tokenizer is in the same folder.
MOVED: dict[str, dict[str, Any]] = {
    "patchword.encoders.timm_image.TimmImage": {"pretrained": True, "weights": None, "model_args": None, "lora": None},
    "patchword.encoders.hf_image.HFImage": {"config": None, "lora": None},
    "patchword.encoders.hf_text.HFText": {"config": None, "tokenizer": None, "stretch_positions": None, "lora": None},
    "patchword.encoders.pair.PretrainedPair": {"config": None, "tokenizer": None, "lora": None},
}


def read(name: str) -> dict[str, Any]:
    """Read an exported model.

    Args:
        name: The folder, or OWNER/NAME or OWNER/NAME@REVISION on the hub.

    Returns:
        `hyper_parameters`: the encoder, whose towers are in the folder, the objective and other settings; `trained`:
        how the model was trained; `heads` and `objective`: the states of the encoder's own layers and of the objective.

    Raises:
        UserError: If there is no such folder or repository, or it is not complete.
    """
    repository = hub.find(name, "model")
    folder = Path(name).expanduser() if repository.commit is None else _downloaded(repository)
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kept = {"token_selection": found["tokens"], "phrase_query": found["query"]}
        objective = {key: found["objective"][key] for key in ("class_path", "init_args")}
        encoder = _moved(found["encoder"], folder)
        trained = dict(found["trained"] or {})
    except FileNotFoundError as error:
        raise UserError(f"{name}: not a folder of `patchword export`: it has no config.json") from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{name}: config.json was not written by this version of `patchword export`: export the model again"
        ) from error
    return {
        "hyper_parameters": {"encoder": encoder, "objective": objective, **kept},
        "trained": trained,
        "heads": _tensors(folder / "heads.safetensors") if "image" in encoder["init_args"] else {},  # a pair has none
        "objective": _tensors(folder / "objective.safetensors"),
    }


def _moved(spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the spec of an encoder whose towers are read from `folder`."""
    if "image" not in spec["init_args"]:
        return _tower(spec, folder / "model")
    towers = {part: _tower(spec["init_args"][part], folder / part) for part in ("image", "text")}
    return {**spec, "init_args": {**spec["init_args"], **towers}}


def _tower(spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    place = {"name": f"local-dir:{folder}"} if spec["class_path"].endswith(".TimmImage") else {"model": str(folder)}
    return {**spec, "init_args": {**spec["init_args"], **MOVED[spec["class_path"]], **place}}


def _downloaded(repository: hub.Repository) -> Path:
    from huggingface_hub import snapshot_download

    parts = ["config.json", "*.safetensors", "image/*", "text/*", "model/*"]
    try:
        return Path(snapshot_download(repository.name, revision=repository.commit, allow_patterns=parts))
    except Exception as error:  # connections raise many kinds of errors
        raise UserError(hub.explain(error, repository.name, "model")) from error


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{path.parent}: not a complete folder of `patchword export`: it has no {path.name}") from error
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is damaged ({printable(str(error), 200)}): export or download it again") from error
