"""`benchmarks/gpu.py`: its dry run measures every part, and no failure of a part ends the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
LATE = "SKIPPED: the time budget is used up"
FAKES = """
import os, time

def cases(setup):
    yield "works", lambda: {"seconds": 1.0}
    yield "breaks", lambda: HOW
    yield "never", lambda: {}
"""


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that runs the parts; scripts import their own modules without the folder's name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from gpu_parts import processes

    return processes


def setup(parts: ModuleType) -> Any:
    return parts.Setup("cpu", small=True, compile=False)


def dry_run(file: Path, *options: str) -> list[dict[str, Any]]:
    """The rows of the file that a dry run writes."""
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--small", "--json", str(file), *options]
    run = subprocess.run(command, cwd=ROOT, check=True, timeout=900, capture_output=True, text=True, env=os.environ)
    rows = json.loads(file.read_text())["rows"]
    assert [line.split()[0] for line in run.stdout.splitlines()[2:-1]] == [row["part"] for row in rows]
    return rows


@pytest.mark.slow
def test_the_dry_run_measures_every_part(tmp_path: Path, parts: ModuleType) -> None:
    """No row failed, the steps are compared with open_clip's or CLIP's, and gradients agree with float64."""
    rows = dry_run(tmp_path / "gpu.json", "--budget", "800")
    assert [row for row in rows if row["note"].startswith(("FAILED", "WRONG", "SKIPPED", "ENDED"))] == []
    assert {row["part"] for row in rows} == {parts.part_of(module) for module in parts.ENDS}
    steps = {row["case"]: row for row in rows if row["part"] == "steps" and row["seconds"]}
    assert steps["SPARC, B=8"]["target"] == 1.01
    assert all(row["ratio"] > 0 and row["mfu"] > 0 and row["images_per_second"] > 0 for row in steps.values())
    assert next(iter(steps.values()))["ratio"] == 1
    agreement = [row for row in rows if row["part"] == "agreement"]
    assert all(row["gradient_error"] < (1e-7 if "two-pass" in row["case"] else 0.5) for row in agreement)


@pytest.mark.slow
def test_without_time_every_part_is_a_row_that_says_so(tmp_path: Path, parts: ModuleType) -> None:
    rows = dry_run(tmp_path / "gpu.json", "--budget", "0")
    assert [row["note"] for row in rows] == [LATE] * len(parts.ENDS)


def test_a_failing_case_is_a_row_and_the_next_one_is_measured(
    parts: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error, a lack of memory, a case without time, and an error between two cases."""
    end = time.monotonic() + 1000

    def fails() -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate a lot")

    def cases(setup: Any) -> Any:
        yield "memory", fails
        yield "bug", lambda: {"seconds": 1 / 0}
        yield "works", lambda: {"seconds": 2.0}
        monkeypatch.setattr(time, "monotonic", lambda: end + 1)
        yield "late", fails
        raise RuntimeError("no more cases")

    fake = ModuleType("fake")
    fake.cases = cases  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake", fake)
    rows = list(parts.measured("fake", setup(parts), end))
    assert [(row.case, row.note) for row in rows] == [
        ("memory", "FAILED: out of memory"),
        ("bug", "FAILED: ZeroDivisionError: division by zero"),
        ("works", ""),
        ("late", LATE),
        ("the rest", "FAILED: RuntimeError: no more cases"),
    ]
    assert rows[2].seconds == 2.0
    (row,) = parts.measured("no_such_part", setup(parts), end)
    assert row.note == "FAILED: ModuleNotFoundError: No module named 'no_such_part'"


@pytest.mark.slow
def test_a_part_that_dies_or_hangs_does_not_end_the_next(
    parts: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The rows before stay, a row says what happened, and the next part runs."""
    ways = {"dies": ("os._exit(7)", 0.5), "hangs": ("time.sleep(1000)", 0.9), "goes_on": ("{}", 1.0)}
    for name, (how, _) in ways.items():
        (tmp_path / f"{name}.py").write_text(FAKES.replace("HOW", how))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(parts, "ENDS", {name: end for name, (_, end) in ways.items()})
    monkeypatch.setattr(parts, "GRACE", 0)
    rows = [(row.part, row.case, row.note) for row in parts.all_rows(setup(parts), 60)]
    assert rows == [
        ("dies", "works", ""),
        ("dies", "the rest", "FAILED: it died with exit code 7"),
        ("hangs", "works", ""),
        ("hangs", "the rest", "ENDED: the time budget is used up"),
        ("goes_on", "works", ""),
        ("goes_on", "breaks", ""),
        ("goes_on", "never", ""),
    ]
