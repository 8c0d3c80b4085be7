"""Runs that measured different things are not put into one table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from patchword.errors import InputError
from patchword.report.run import Run, as_dict

# Of the data's arguments, those that change training or speed, not what the test measures.
_OF_TRAINING = {"seed", "batch_size", "num_workers", "remember", "train_size"}
_COUNTS = ("images", "captions", "phrases", "negatives")


def require_same_definition(runs: Sequence[Run]) -> None:
    """Do nothing if all runs measured the same thing.

    Runs of older versions of patchword do not say what they measured. They can be compared among themselves, by their
    data, query and counts.

    Raises:
        InputError: If two runs differ; it names the key, both values and a run of each.
    """
    new = [run for run in runs if as_dict(run.measured.get("definition"))]
    old = [run for run in runs if run not in new]
    if new and old:
        raise InputError(
            f"{old[0].path} does not say what it measured (no 'definition': an older patchword has written it), "
            f"{new[0].path} does; test it again, or report the two apart"
        )
    first = _definition(runs[0])
    for run in runs[1:]:
        other = _definition(run)
        for key in [*first, *(key for key in other if key not in first)]:
            here, there = (json.dumps(found[key]) if key in found else "absent" for found in (first, other))
            if here != there:
                raise InputError(
                    f"these runs measured different things: {key} is {here} in {runs[0].path}, "
                    f"but {there} in {run.path}; report them apart"
                )


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dictionaries, by the dotted names of their keys."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    found: dict[str, Any] = {}
    for name, part in value.items():
        found |= flatten(part, f"{prefix}.{name}" if prefix else str(name))
    return found


def _definition(run: Run) -> dict[str, Any]:
    if definition := as_dict(run.measured.get("definition")):
        return flatten(definition)
    data = as_dict(run.measured.get("data"))
    arguments = {k: v for k, v in as_dict(data.get("init_args")).items() if k not in _OF_TRAINING}
    counts = {
        name: value
        for name, value in run.metrics.items()
        if name.rpartition("/")[2] in _COUNTS and "/centre/" not in name and "/chance/" not in name
    }
    settled = {"data": {"class_path": data.get("class_path"), "init_args": arguments}, "query": run.query}
    return flatten(settled) | counts
