"""A run: the numbers of one test, and everything that `results.json` says about where they come from."""

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
        path: Its `results.json`.
        variant: What is compared with other variants: runs of a variant differ by their seed alone.
        seed: What it was trained with, where that is known.
        metrics: The test's numbers by name, `split/...`.
        measured: What else the file says; files of older versions lack keys.
    """

    path: Path
    variant: str
    seed: int | None
    metrics: dict[str, float]
    measured: dict[str, Any]

    @property
    def trained(self) -> dict[str, Any]:
        """How the model was trained; empty where that is not known."""
        return as_dict(self.measured.get("trained"))

    @property
    def cost(self) -> dict[str, float]:
        """What training cost, as far as it is recorded: seconds of a step and of all, and `peak_memory` in bytes."""
        found = {name: self.trained.get(name) for name in COSTS}
        return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}

    @property
    def query(self) -> str | None:
        """Which words of a phrase were looked for in the image."""
        settled = as_dict(self.measured.get("definition")) or as_dict(self.measured.get("model"))
        query = settled.get("query")
        return query if isinstance(query, str) else None

    @property
    def provenance(self) -> dict[str, str]:
        """Where the numbers come from, in words: `not recorded` where the file does not say it."""
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
    """The value if it is a dictionary, or an empty one."""
    return value if isinstance(value, dict) else {}


def _words(value: Any) -> str:
    """A value of a JSON file as a person reads it."""
    if value is None or value in ("", [], {}):
        return NOT_RECORDED
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(part)}" for name, part in value.items() if part not in (None, [], {}))
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    return value if isinstance(value, str) else json.dumps(value)
