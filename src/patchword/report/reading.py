"""Find what runs have left, and put it into one comparison."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from patchword.errors import InputError
from patchword.report.comparison import Comparison, Unfinished
from patchword.report.definition import require_same_definition
from patchword.report.plan import PLAN, Plan, read_plan
from patchword.report.run import Run, as_dict
from patchword.report.unfinished import find_unfinished
from patchword.report.variants import class_name, name_variants, seed_of_folder

RESULTS = "results.json"


def read_runs(*paths: str | Path, baseline: str | None = None) -> Comparison:
    """The finished runs below folders, grouped into variants.

    A run of `patchword compare` belongs to the variant of its folder, `<variant>/seed_<s>`. A run made by hand belongs
    to the variant of its objective's class. Where two configurations would share a name, what differs is appended.

    Args:
        paths: Folders, or files `results.json` of tests.
        baseline: The variant that others are compared with; without it, the one that the plan of the comparison names.

    Raises:
        InputError: If there are no runs, a file cannot be read, two runs have one variant and seed, runs measured
            different things, or there is no such baseline.
    """
    folders = [Path(path) for path in paths]
    notes: list[str] = []
    files = [file for folder in folders for file in _results_below(folder)]
    files = list({file.resolve(): file for file in files}.values())
    plans = _plans(folders, files)
    unfinished = find_unfinished(folders, plans)
    read = [run for run in map(_read, files) if run is not None]
    if not read:
        raise InputError(_nothing(folders, files, unfinished))
    runs = _without_duplicates(name_variants(read), notes)
    require_same_definition(runs)
    variants = _ordered((run.variant for run in runs), plans)
    runs.sort(key=lambda run: (variants.index(run.variant), -1 if run.seed is None else run.seed))
    return Comparison(
        name=", ".join(dict.fromkeys(plan.name for plan in plans)) or folders[0].resolve().name,
        claims=tuple(dict.fromkeys(plan.claim for plan in plans if plan.claim)),
        baseline=_baseline(baseline, variants, plans, notes),
        variants=tuple(variants),
        runs=tuple(runs),
        unfinished=tuple(unfinished),
        notes=tuple(notes),
    )


def _results_below(path: Path) -> list[Path]:
    if path.is_file():
        if path.name != RESULTS:
            raise InputError(f"{path}: not a folder of runs, and not a {RESULTS} of `patchword test`")
        return [path]
    if not path.is_dir():
        raise InputError(f"{path}: there is no such folder or file")
    return sorted(path.rglob(RESULTS))


def _read(path: Path) -> Run | None:
    """The run of a file; None if it has no test metrics, but those of `patchword validate`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    metrics, measured = (as_dict(as_dict(found).get(key)) for key in ("metrics", "measured"))
    if not metrics or not measured:
        raise InputError(f"{path} has no metrics and what they measured: `patchword test` has not written it")
    numbers = {name: _number(path, name, value) for name, value in metrics.items()}
    numbers = {name: value for name, value in numbers.items() if not name.startswith("val/")}
    if not numbers:
        return None
    run = Run(path, "", None, numbers, measured)
    folder = path.absolute().parent.parent
    of_folder = seed_of_folder(folder.name)
    seed = run.trained.get("seed")
    return Run(
        path=path,
        variant=class_name(run) if of_folder is None else folder.parent.name,
        seed=seed if isinstance(seed, int) else of_folder,
        metrics=numbers,
        measured=measured,
    )


def _number(path: Path, name: str, value: Any) -> float:
    if value is None:
        return float("nan")
    if not isinstance(value, int | float):
        raise InputError(f"{path}: metrics.{name} must be a number, not {json.dumps(value)[:60]}")
    return float(value)


def _plans(folders: Sequence[Path], files: Sequence[Path]) -> list[Plan]:
    """The plans below the folders, and those that their runs belong to."""
    found = {path.resolve(): path for folder in folders if folder.is_dir() for path in sorted(folder.rglob(PLAN))}
    for file in files:
        # <comparison>/<variant>/seed_<s>/test/results.json
        absolute = file.absolute()
        if seed_of_folder(absolute.parent.parent.name) is not None:
            plan = absolute.parents[3] / PLAN
            if plan.is_file():
                found.setdefault(plan.resolve(), plan)
    return [read_plan(path) for path in found.values()]


def _without_duplicates(runs: Sequence[Run], notes: list[str]) -> list[Run]:
    kept: dict[tuple[str, int | None], Run] = {}
    for run in runs:
        other = kept.setdefault((run.variant, run.seed), run)
        if other is run:
            continue
        if not _same_test(run, other):
            which = "an unknown seed" if run.seed is None else f"seed {run.seed}"
            raise InputError(
                f"{other.path} and {run.path} are both {run.variant} with {which}, with other numbers or checkpoints; "
                "name the runs that you mean"
            )
        newest, left = sorted((other, run), key=lambda each: each.path.stat().st_mtime, reverse=True)
        kept[run.variant, run.seed] = newest
        notes.append(f"{left.path} holds the numbers of {newest.path}, of the same checkpoint; the newest is used.")
    return list(kept.values())


def _same_test(run: Run, other: Run) -> bool:
    # As text, in which NaN equals itself.
    numbers, others = (json.dumps(each.metrics, sort_keys=True) for each in (run, other))
    return numbers == others and run.measured.get("checkpoint") == other.measured.get("checkpoint")


def _ordered(variants: Iterable[str], plans: Sequence[Plan]) -> list[str]:
    """In the order of the plans; names that are in no plan come last, in the order of the alphabet."""
    planned = [name for plan in plans for name in plan.variants]
    found = sorted(set(variants), key=str.lower)
    return sorted(found, key=lambda name: planned.index(name) if name in planned else len(planned))


def _baseline(wanted: str | None, variants: Sequence[str], plans: Sequence[Plan], notes: list[str]) -> str | None:
    if wanted is not None and wanted not in variants:
        raise InputError(f"--baseline {wanted}: there is no such variant; choose from {', '.join(variants)}")
    if wanted is not None:
        return wanted
    planned = list(dict.fromkeys(plan.baseline for plan in plans if plan.baseline is not None))
    if len(planned) > 1:
        raise InputError(f"these comparisons have other baselines: {', '.join(planned)}; choose one with --baseline")
    if planned and planned[0] not in variants:
        notes.append(f"The planned baseline, {planned[0]}, has no finished run: there are no differences to it.")
        return None
    return planned[0] if planned else None


def _nothing(folders: Sequence[Path], files: Sequence[Path], unfinished: Sequence[Unfinished]) -> str:
    where = ", ".join(map(str, folders))
    if files:
        return f"{files[0]} holds validation metrics only; report the runs of `patchword test`"
    if unfinished:
        return f"none of the {len(unfinished)} runs below {where} is finished; `patchword compare` goes on with them"
    return f"there is no {RESULTS} below {where}; `patchword test` and `patchword compare` write one"
