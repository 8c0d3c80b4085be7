"""A check that all runs of a report measured the same thing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from patchword.errors import UserError
from patchword.report.run import Run, as_dict

# The arguments of the data that change training or speed but not what the test measures.
_OF_TRAINING = {"seed", "batch_size", "num_workers", "remember", "train_size"}
_COUNTS = ("images", "captions", "phrases", "negatives")


def require_same_definition(runs: Sequence[Run]) -> None:
    """Check that all runs measured the same thing.

    Runs of older versions of patchword did not record what they measured. They can be compared with each other, by
    their data, query and counts.

    Raises:
        UserError: If two runs differ; the message names the key, both values and a run with each value.
    """
    new = [run for run in runs if as_dict(run.measured.get("definition"))]
    old = [run for run in runs if run not in new]
    if new and old:
        raise UserError(
            f"{old[0].path} was written by an older version of patchword and does not record what it measured (it has "
            f"no 'definition'), but {new[0].path} does: run the older test again, or make separate reports"
        )
    first = _definition(runs[0])
    for run in runs[1:]:
        other = _definition(run)
        for key in [*first, *(key for key in other if key not in first)]:
            here, there = (json.dumps(found[key]) if key in found else "absent" for found in (first, other))
            if here != there:
                raise UserError(
                    f"these runs measured different things: {key} is {here} in {runs[0].path}, "
                    f"but {there} in {run.path}; make separate reports"
                )


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested dictionaries by their keys, joined with dots."""
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
        if name.rpartition("/")[2] in _COUNTS and "/center_prior/" not in name and "/chance/" not in name
    }
    settled = {"data": {"class_path": data.get("class_path"), "init_args": arguments}, "query": run.query}
    return flatten(settled) | counts
