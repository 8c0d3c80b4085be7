"""Grouping runs that differ only in their seed into variants, and naming the variants."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from patchword.report.definition import flatten
from patchword.report.run import Run, as_dict

_SEED_FOLDER = re.compile(r"seed_(\d+)")
# Options that do not distinguish variants: the maps that are measured, and some options of the data, also of data that
# is wrapped by other data.
_WITHOUT_EFFECT = re.compile(r"model\.map_sources|data\.init_args\.(data\.init_args\.)*(seed|num_workers|remember)")
_LONGEST = 60  # maximum length in characters of the options in a name


def seed_of_folder(name: str) -> int | None:
    """Return the seed of a folder named `seed_<s>`; None for other names."""
    found = _SEED_FOLDER.fullmatch(name)
    return int(found[1]) if found else None


def name_variants(runs: Sequence[Run]) -> list[Run]:
    """Return the runs with variant names that are unique for each configuration.

    A variant keeps its name if all its runs differ only in their seed. If several configurations share a name, the
    options that differ are appended to it.
    """
    configurations = [_configuration(run) for run in runs]
    keys = [json.dumps(configuration, sort_keys=True) for configuration in configurations]
    named = []
    for run, own in zip(runs, configurations, strict=True):
        sharing = {
            key: c for other, key, c in zip(runs, keys, configurations, strict=True) if other.variant == run.variant
        }
        named.append(replace(run, variant=run.variant + _what_differs(own, list(sharing.values()), run)))
    return named


def class_name(run: Run) -> str:
    """Return the class name of the objective, or the model's name for a pretrained pair that was not trained here."""
    model = as_dict(run.measured.get("model"))
    pretrained = as_dict(as_dict(model.get("encoder")).get("init_args")).get("model")
    if isinstance(pretrained, str) and not run.trained:
        return Path(pretrained).name
    objective = as_dict(model.get("objective"))
    return str(objective.get("class_path") or "unknown objective").rpartition(".")[2]


def _configuration(run: Run) -> dict[str, Any]:
    """Return the configuration of the model, the data and the training, without the seed."""
    settled = {name: run.measured.get(name) for name in ("model", "data")}
    trained = {name: run.trained.get(name) for name in ("steps", "batch")}
    return {k: v for k, v in flatten(settled | {"trained": trained}).items() if not _WITHOUT_EFFECT.fullmatch(k)}


def _what_differs(own: dict[str, Any], sharing: list[dict[str, Any]], run: Run) -> str:
    every = {key: None for configuration in sharing for key in configuration}
    differing = [key for key in every if len({json.dumps(c.get(key)) for c in sharing}) > 1]
    if not differing:
        return ""
    names = _short_names(differing)
    options = ", ".join(f"{names[key]}={_value(own[key])}" for key in differing if key in own)
    return (
        f" ({options})"
        if 0 < len(options) <= _LONGEST
        else f" ({run.measured.get('config_hash')}, {run.trained.get('steps')} steps)"
    )


def _short_names(keys: Iterable[str]) -> dict[str, str]:
    """Return the shortest end of each key that is unique."""
    paths = {key: [part for part in key.split(".") if part != "init_args"] for key in keys}
    found = {}
    for key, path in paths.items():
        ends = [other for name, other in paths.items() if name != key]
        length = next((n for n in range(1, len(path)) if all(o[-n:] != path[-n:] for o in ends)), len(path))
        found[key] = ".".join(path[-length:])
    return found


def _value(value: Any) -> str:
    return value.rpartition(".")[2] if isinstance(value, str) else json.dumps(value)
