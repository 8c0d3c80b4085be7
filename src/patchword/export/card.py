"""The model card of an exported folder: how to use its parts, and what they were trained on."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from patchword.encoders.two_towers import ResidualAdapter, TwoTowers
from patchword.files.markdown_text import escape
from patchword.files.yaml_file import read_yaml
from patchword.module import AlignmentModule
from patchword.version import __version__

Results = tuple[dict[str, float], dict[str, Any]]  # `metrics` and `measured`


def applied(module: AlignmentModule, checkpoint: Path, parts: dict[str, str]) -> dict[str, Any]:
    """Return a description of how to use the parts of a folder, as plain data.

    `parts` describes how to load each folder. The config.yaml of the run of `checkpoint` describes the training data.
    """
    encoder: Any = module.encoder
    return {
        "patchword": __version__,
        "parts": parts,
        "heads": _heads(encoder) if isinstance(encoder, TwoTowers) else None,
        "objective": {
            **module.objective.spec,
            "parameters": "objective.safetensors: the state_dict of the class named here",
            "score": (module.objective.score.__doc__ or "").strip(),
            "align": (module.objective.align.__doc__ or "").strip(),
        },
        "tokens": module.token_selection,
        "query": module.phrase_query,
        "preprocessing": asdict(encoder.preprocessing) | {"image_size": list(encoder.image_size)},
        "grid": list(encoder.grid),
        "embed_dim": encoder.embed_dim,
        "encoder": encoder.spec,
        "trained": module.trained,
        "data": _data(checkpoint),
    }


def card(found: dict[str, Any], results: Results | None = None) -> str:
    """Return the folder's README.md, given the description from `applied` and the content of a `results.json`."""
    objective = found["objective"]["class_path"].rpartition(".")[2]
    trained = found["trained"] if isinstance(found["trained"], dict) else {}
    data = "```json\n" + json.dumps(found["data"], indent=2) + "\n```" if found["data"] else "not recorded"
    lines = [
        "---",
        "library_name: patchword",
        "pipeline_tag: zero-shot-image-classification",
        f"tags: [image-text, {objective}]",
        "---",
        f"# {objective}, trained with patchword {found['patchword']}",
        "",
        f"This model has an image tower and a text tower with a shared space of {found['embed_dim']} dimensions, "
        f"trained with {objective}. Its input is an image of "
        f"{' x '.join(map(str, found['preprocessing']['image_size']))} pixels, which is divided into "
        f"{' x '.join(map(str, found['grid']))} patches. {_seen(found['preprocessing'])}.",
        "",
        "## How to load it",
        "",
        "`patchword.AlignmentModule.from_pretrained(FOLDER)` loads the complete model; FOLDER can also be the name of "
        "a repository of the Hugging Face hub. The parts can be loaded without patchword:",
        "",
        *(f"- `{name}/`: {how}." for name, how in found["parts"].items()),
        *(["- `heads.safetensors`: the adapters. They compute the embeddings as follows:"] if found["heads"] else []),
        *(f"  - {name}: {how}" for name, how in (found["heads"] or {}).items()),
        f"- `objective.safetensors`: temperatures and other parameters of {objective}. Score: "
        f"{found['objective']['score']} Map: {found['objective']['align']}",
        "- `config.json`: all of this information as data.",
        "",
        "## Training",
        "",
        data,
        "",
        f"Steps: {_words(trained.get('steps'))}; pairs per step: {_words(trained.get('batch'))}; "
        f"seed: {_words(trained.get('seed'))}; hardware: {_words(trained.get('hardware'))}; commit: "
        f"{_words(trained.get('commit'))}.",
        "",
        "## Results",
        "",
        *_results(results),
        "",
        "## Limits",
        "",
        "The licenses of the backbones and of the data apply to this model.",
        "",
    ]
    return "\n".join(lines)


def _results(results: Results | None) -> list[str]:
    """Return a table of the metrics by which models are compared, and of chance and the position priors."""
    if results is None:
        return ["Not given. `patchword export --results` adds those of a results.json."]
    metrics, measured = results
    definition = measured.get("definition")
    definition = definition if isinstance(definition, dict) else {}
    rows = []
    for name, value in metrics.items():
        split, _, metric = name.partition("/")
        if "/" in metric:  # losses have no group
            rows.append(f"| {escape(split)} | {escape(metric)} | {value:.3f} |")
    return [
        f"Data set: {_words(definition.get('data_set'))}; query of maps: {_words(definition.get('query'))}.",
        "",
        "| split | metric | value |",
        "| --- | --- | ---: |",
        *rows,
    ]


def _seen(preprocessing: dict[str, Any]) -> str:
    """Describe how an image of any size is resized."""
    fraction = f"{preprocessing['fraction']:.3g}"
    if preprocessing["resize_mode"] == "native":
        most = f"at most {preprocessing['max_num_patches']} patches"
        return f"An image keeps its shape, has {most}, and is padded to this size"
    if preprocessing["resize_mode"] == "stretch" and preprocessing["fraction"] == 1:
        what = "The complete image is stretched to this size"
    elif preprocessing["resize_mode"] == "stretch":
        what = f"The center of the image ({fraction} of each side) is stretched to this size"
    else:
        what = f"The square at the center of the image ({fraction} of the shorter side) is resized to this size"
    return f"{what} with {preprocessing['interpolation']} interpolation"


def _heads(encoder: TwoTowers) -> dict[str, str]:
    """Describe how each embedding is computed from the towers' outputs with the weights in heads.safetensors."""
    residual = isinstance(encoder.image_adapter, ResidualAdapter)
    image = "skip(x) + main.2(relu(main.0(x)))" if residual else "W x + b"
    pooled = "the class token" if encoder.image_pool == "cls" else "the mean of the patches"
    if len(encoder.pooled_layer):
        pooled = f"gelu(pooled_layer.0(x)) of {pooled}"
    words = {"mean": "the mean of the real tokens", "cls": "the first real token", "eos": "the last real token"}
    return {
        "patches": f"image_adapter(x) = {image} of each patch",
        "pooled image": f"image_adapter of {pooled}",
        "tokens": "text_adapter(x) = W x + b of each token",
        "pooled text": f"text_adapter of {words[encoder.text_pool]}",
    }


def _data(checkpoint: Path) -> Any:
    """Return the data section of the config.yaml in the folder of the run; None if there is none."""
    for folder in checkpoint.absolute().parents[:2]:
        config = folder / "config.yaml"
        if config.is_file():
            found = read_yaml(config)
            return found.get("data") if isinstance(found, dict) else None
    return None


def _words(value: Any) -> str:
    """Format a value of a checkpoint as text, escaped because the checkpoint may come from anyone."""
    if isinstance(value, dict):
        return escape(", ".join(f"{name} {part}" for name, part in value.items() if part)) or "not recorded"
    return "not recorded" if value is None or value == "" else escape(str(value))
