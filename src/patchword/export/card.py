"""What an exported folder says of itself: how its parts apply, and what they were trained on."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from patchword import __version__
from patchword.encoders import TwoTowers
from patchword.module import AlignmentModule


def applied(module: AlignmentModule, checkpoint: Path, parts: dict[str, str]) -> dict[str, Any]:
    """How the parts of a folder apply, as plain data.

    Args:
        module: What was exported.
        checkpoint: Where it came from; the run's config.yaml beside it says what it was trained on.
        parts: For each folder, how it is loaded.
    """
    import torch

    saved = torch.load(checkpoint, weights_only=True, mmap=True, map_location="cpu")
    encoder: Any = module.encoder
    heads = _heads(encoder) if isinstance(encoder, TwoTowers) else None
    return {
        "patchword": __version__,
        "parts": parts,
        "heads": heads,
        "objective": {
            **module.objective.spec,
            "parameters": "objective.safetensors: the state_dict of the class named here",
            "score": (module.objective.score.__doc__ or "").strip(),
            "align": (module.objective.align.__doc__ or "").strip(),
        },
        "tokens": module.tokens,
        "query": module.query,
        "preprocessing": asdict(encoder.preprocessing) | {"image_size": list(encoder.image_size)},
        "grid": list(encoder.grid),
        "embed_dim": encoder.embed_dim,
        "encoder": encoder.spec,
        "trained": saved.get("trained"),
        "data": _data(checkpoint),
    }


def card(found: dict[str, Any]) -> str:
    """The folder's README.md, of what `applied` has found."""
    objective = found["objective"]["class_path"].rpartition(".")[2]
    trained = found["trained"] or {}
    data = "```json\n" + json.dumps(found["data"], indent=2) + "\n```" if found["data"] else "not recorded"
    lines = [
        "---",
        "library_name: patchword",
        "pipeline_tag: zero-shot-image-classification",
        f"tags: [image-text, {objective}]",
        "---",
        f"# {objective}, aligned by patchword {found['patchword']}",
        "",
        f"An image tower and a text tower in one space of {found['embed_dim']} dimensions, trained with {objective}. "
        f"An image of {' x '.join(map(str, found['preprocessing']['image_size']))} pixels is "
        f"{' x '.join(map(str, found['grid']))} patches; {_seen(found['preprocessing'])}.",
        "",
        "## How to load it",
        "",
        *(f"- `{name}/`: {how}." for name, how in found["parts"].items()),
    ]
    if found["heads"]:
        lines += [
            "- `heads.safetensors`: the adapters.",
            *(f"  - {name}: {how}" for name, how in found["heads"].items()),
        ]
    lines += [
        f"- `objective.safetensors`: temperatures and other parameters of {objective}. Its score: "
        f"{found['objective']['score']} Its map: {found['objective']['align']}",
        "- `patchword.json`: all this as data.",
        "",
        "## What it was trained on",
        "",
        data,
        "",
        f"Steps: {trained.get('steps', 'not recorded')}; pairs in a step: {trained.get('batch', 'not recorded')}; "
        f"seed: {trained.get('seed', 'not recorded')}; hardware: {_words(trained.get('hardware'))}; commit: "
        f"{trained.get('commit') or 'not recorded'}.",
        "",
        "## Limits",
        "",
        "The licences of the backbones and of the data apply. How well the model does is in the `results.json` of "
        "`patchword test`, with what each number means.",
        "",
    ]
    return "\n".join(lines)


def _seen(preprocessing: dict[str, Any]) -> str:
    """How any image becomes one of this size."""
    if preprocessing["fit"] == "stretch":
        what = "the whole image is stretched to it"
    else:
        what = f"of another image it is the centre's square, {preprocessing['fraction']:.3g} of the shorter side"
    return f"{what} ({preprocessing['interpolation']})"


def _heads(encoder: TwoTowers) -> dict[str, str]:
    """Each embedding as a formula of what the towers give and of the names in heads.safetensors."""
    image, text = "image_adapter(x)", "text_adapter(x) = W x + b"
    if encoder.image_adapter.__class__.__name__ == "ResidualAdapter":
        image += " = skip(x) + main.2(relu(main.0(x)))"
    else:
        image += " = W x + b"
    pooled = "the class token" if encoder.image_pool == "cls" else "the mean of the patches"
    if len(encoder.pooled_layer):
        pooled = f"gelu(pooled_layer.0(x)) of {pooled}"
    words = {"mean": "the mean of the real tokens", "cls": "the first real token", "eos": "the last real token"}
    return {
        "patches": f"{image} of each patch",
        "pooled image": f"image_adapter of {pooled}",
        "tokens": f"{text} of each token",
        "pooled text": f"text_adapter of {words[encoder.text_pool]}",
    }


def _data(checkpoint: Path) -> Any:
    """What the configuration beside the run's checkpoints says of its data."""
    for folder in checkpoint.absolute().parents[:2]:
        config = folder / "config.yaml"
        if config.is_file():
            found = yaml.safe_load(config.read_text(encoding="utf-8"))
            return found.get("data") if isinstance(found, dict) else None
    return None


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {part}" for name, part in value.items() if part) or "not recorded"
    return str(value or "not recorded")
