"""A run: the numbers of one test and their provenance, as recorded in `results.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NOT_RECORDED = "not recorded"
COSTS = ("step_seconds", "step_cpu_seconds", "peak_memory", "seconds")


@dataclass(frozen=True)
class Run:
    """One trained and tested model.

    Attributes:
        path: The path of the run's `results.json`.
        variant: The name of the run's variant. Runs of a variant differ only in their seed.
        seed: The seed of the training; None if it is unknown.
        metrics: The numbers of the test by name, `split/...`.
        measured: The other content of the file. Files of older versions lack some keys.
    """

    path: Path
    variant: str
    seed: int | None
    metrics: dict[str, float]
    measured: dict[str, Any]

    @property
    def trained(self) -> dict[str, Any]:
        """The record of how the model was trained; empty if there is none."""
        return as_dict(self.measured.get("trained"))

    @property
    def cost(self) -> dict[str, float]:
        """The recorded costs of training: seconds per step and in total, and `peak_memory` in bytes."""
        found = {name: self.trained.get(name) for name in COSTS}
        return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}

    @property
    def query(self) -> str | None:
        """The words of a phrase that the maps were computed for; None if this is not recorded."""
        model = as_dict(self.measured.get("model"))
        settled = as_dict(self.measured.get("definition")) or {"query": model.get("phrase_query", model.get("query"))}
        query = settled.get("query")
        return query if isinstance(query, str) else None

    @property
    def provenance(self) -> dict[str, str]:
        """The provenance of the numbers as text, with `not recorded` for missing values."""
        trained = self.trained
        hardware = trained.get("hardware") or self.measured.get("hardware") or self.measured.get("machine")
        return {
            "config_hash": _words(self.measured.get("config_hash")),
            "steps": _words(trained.get("steps")),
            "batch": _words(trained.get("batch")),
            "commit": _words(trained.get("commit") or self.measured.get("commit")),
            "encoder_at_start": _words(trained.get("encoder_at_start")),
            "data_order": _words(trained.get("data_order")),
            "checkpoint": _words(self.measured.get("checkpoint")),
            "hardware": _words(hardware),
            "versions": _words(self.measured.get("versions")),
            "results": str(self.path),
        }


def as_dict(value: Any) -> dict[str, Any]:
    """Return the value if it is a dictionary, else an empty dictionary."""
    return value if isinstance(value, dict) else {}


def _words(value: Any) -> str:
    """Format a value of a JSON file for a reader."""
    if value is None or value in ("", [], {}):
        return NOT_RECORDED
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(part)}" for name, part in value.items() if part not in (None, [], {}))
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    return value if isinstance(value, str) else json.dumps(value)
