"""The provenance of every number, with one row per run; values that runs share are written once."""

from __future__ import annotations

from dataclasses import dataclass

from patchword.report.comparison import Comparison

_LONG = {"commit": "C", "hardware": "M", "versions": "V"}


@dataclass(frozen=True)
class Provenance:
    """A table with one row per run. Its commit, hardware and versions are short keys, whose values the legend has."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    legend: dict[str, str]


def provenance(comparison: Comparison) -> Provenance:
    """Return the config hash, seed, versions, commit, hardware and checkpoint of each run."""
    every = [run.provenance for run in comparison.runs]
    keys: dict[str, dict[str, str]] = {}
    for name, mark in _LONG.items():
        values = dict.fromkeys(found[name] for found in every)
        keys[name] = {value: f"{mark}{number}" for number, value in enumerate(values, 1)}
    rows = []
    for run, found in zip(comparison.runs, every, strict=True):
        short = {name: keys[name][value] if name in keys else value for name, value in found.items()}
        rows.append((run.variant, "unknown" if run.seed is None else str(run.seed), *short.values()))
    columns = ("variant", "seed", *(name.replace("_", " ") for name in every[0]))
    legend = {f"{key}, {name}": value for name, values in keys.items() for value, key in values.items()}
    return Provenance(columns, tuple(rows), legend)
