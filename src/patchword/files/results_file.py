"""Write and read `results.json`, the file of a finished test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from patchword.errors import UserError
from patchword.files.atomic_write import atomic_write

RESULTS = "results.json"


def write_results(
    folder: Path, metrics: dict[str, float], measured: dict[str, Any], intervals: dict[str, tuple[float, float]]
) -> Path:
    """Write the file atomically, and return its path.

    Args:
        folder: The folder of the file.
        metrics: The value of each metric.
        measured: The description of the model, the data and the run that were measured.
        intervals: The 95 % confidence intervals of some of the metrics, by a bootstrap over images.
    """
    path = folder / RESULTS
    with atomic_write(path) as file:
        found = {"metrics": metrics, "intervals": intervals, "measured": measured}
        file.write(json.dumps(found, indent=2) + "\n")
    return path


def read_results(path: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """The `metrics` and `measured` of a file. A metric that is null in the file is NaN.

    Raises:
        UserError: If the file cannot be read, or was not written by a test.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    parts: list[Any] = [found.get(key) for key in ("metrics", "measured")] if isinstance(found, dict) else [None]
    if not all(isinstance(part, dict) and part for part in parts):
        raise UserError(f"{path} does not contain `metrics` and `measured`: it was not written by `patchword test`")
    metrics, measured = parts
    return {name: _number(path, name, value) for name, value in metrics.items()}, measured


def _number(path: Path, name: str, value: Any) -> float:
    if value is None:
        return float("nan")
    if not isinstance(value, int | float):
        raise UserError(f"{path}: metrics.{name} must be a number, not {json.dumps(value)[:60]}")
    try:
        return float(value)
    except OverflowError as error:
        raise UserError(f"{path}: metrics.{name} is too large for a floating point number") from error
