"""Runs of a comparison that have no results; a report lists them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from patchword.errors import UserError
from patchword.files.results_file import RESULTS, read_results
from patchword.report.comparison import Unfinished
from patchword.report.plan import Plan
from patchword.report.variants import seed_of_folder

_ERROR = "patchword: error: "


def find_unfinished(folders: Sequence[Path], plans: Sequence[Plan]) -> list[Unfinished]:
    """Return the runs without results: those with a folder `<variant>/seed_<s>`, and those that are only planned.

    This includes runs whose `test/results.json` is broken; `patchword compare` tests them again.
    """
    started = {
        path.resolve(): path
        for folder in folders
        if folder.is_dir()
        for path in [folder, *folder.rglob("seed_*")]
        if seed_of_folder(path.resolve().name) is not None and path.is_dir()
    }
    planned = [plan.folder / name / f"seed_{seed}" for plan in plans for name in plan.variants for seed in plan.seeds]
    every = started | {path.resolve(): path for path in planned if _below(path, folders)}
    order = [name for plan in plans for name in plan.variants]
    found = [
        Unfinished(path.parent.name, seed_of_folder(path.name) or 0, shown, state)
        for path, shown in every.items()
        if (state := _state(path))
    ]
    places = {name: place for place, name in reversed(list(enumerate(order)))}
    return sorted(found, key=lambda run: (places.get(run.variant, len(order)), run.variant, run.seed))


def _below(path: Path, folders: Sequence[Path]) -> bool:
    return any(path.resolve().is_relative_to(folder.resolve()) for folder in folders)


def _state(folder: Path) -> str:
    """Describe how far an unfinished run got; empty for a finished run."""
    if not folder.is_dir():
        return "not started"
    if (results := folder / "test" / RESULTS).is_file():
        try:
            read_results(results)
        except UserError as error:
            return f"the results cannot be read: {error}"
        return ""
    if message := _error(folder / "test.log"):
        return f"test failed: {message}"
    if message := _error(folder / "fit.log"):
        return f"training failed: {message}"
    if any((folder / "fit" / "checkpoints").glob("*.ckpt")):
        return "has a checkpoint but no test results"
    return "has no checkpoint"


def _error(log: Path) -> str:
    """Return the error at the end of a log; empty if the log does not end with one."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    if last.startswith(_ERROR):
        return last.removeprefix(_ERROR)
    return last if any(line.startswith("Traceback ") for line in lines) else ""
