"""Finding the results of runs, and grouping them into one comparison."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from patchword.errors import UserError
from patchword.files.results_file import RESULTS, read_results
from patchword.report.comparison import Comparison, Unfinished
from patchword.report.definition import require_same_definition
from patchword.report.former_names import present_name
from patchword.report.plan import PLAN, Plan, read_plan
from patchword.report.run import Run
from patchword.report.unfinished import find_unfinished
from patchword.report.variants import class_name, name_variants, seed_of_folder


def read_runs(*paths: str | Path, baseline: str | None = None) -> Comparison:
    """Read the finished runs below some folders, grouped into variants.

    A run of `patchword compare` belongs to the variant of its folder, `<variant>/seed_<s>`. Any other run belongs to
    the variant named after its objective's class. If two configurations would share a name, the options that differ
    are appended.

    Args:
        paths: Folders, or `results.json` files of tests.
        baseline: The variant that others are compared with. The default is the baseline of the comparison's plan.

    Raises:
        UserError: If there are no runs, a file cannot be read, two runs have the same variant and seed, runs measured
            different things, or the baseline does not exist.
    """
    folders = [Path(path) for path in paths]
    notes: list[str] = []
    files = [file for folder in folders for file in _results_below(folder)]
    files = list({file.resolve(): file for file in files}.values())
    plans = _plans(folders, files)
    unfinished = find_unfinished(folders, plans)
    left_out = {(run.folder / "test" / RESULTS).resolve() for run in unfinished}
    read = [run for file in files if file.resolve() not in left_out and (run := _read(file)) is not None]
    if not read:
        raise UserError(_nothing(folders, files, unfinished))
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
            raise UserError(f"{path}: neither a folder of runs nor a {RESULTS} of `patchword test`")
        return [path]
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder")
    return sorted(path.rglob(RESULTS))


def _read(path: Path) -> Run | None:
    """Read the run of a file; return None if the file has only metrics of `patchword validate`."""
    metrics, measured = read_results(path)
    numbers = {present_name(name): value for name, value in metrics.items() if not name.startswith("val/")}
    if not numbers:
        return None
    folder = path.absolute().parent.parent
    of_folder = seed_of_folder(folder.name)
    run = Run(path, folder.parent.name, of_folder, numbers, measured)
    seed = run.trained.get("seed")
    return replace(
        run,
        variant=class_name(run) if of_folder is None else run.variant,
        seed=seed if isinstance(seed, int) else of_folder,
    )


def _plans(folders: Sequence[Path], files: Sequence[Path]) -> list[Plan]:
    """Read the plans below the folders and the plans that the files belong to."""
    found = {path.resolve(): path for folder in folders if folder.is_dir() for path in sorted(folder.rglob(PLAN))}
    for file in files:
        folder = file.absolute().parent.parent  # <comparison>/<variant>/seed_<s>
        if seed_of_folder(folder.name) is not None and (plan := folder.parent.parent / PLAN).is_file():
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
            raise UserError(
                f"{other.path} and {run.path} are both runs of {run.variant} with {which}, but their numbers or "
                "checkpoints differ: pass only one of the two"
            )
        newest, left = sorted((other, run), key=lambda each: each.path.stat().st_mtime, reverse=True)
        kept[run.variant, run.seed] = newest
        notes.append(
            f"{left.path} has the same numbers and checkpoint as {newest.path}; the report uses the newer file."
        )
    return list(kept.values())


def _same_test(run: Run, other: Run) -> bool:
    # The numbers are compared as text, so that NaN equals NaN.
    numbers, others = (json.dumps(each.metrics, sort_keys=True) for each in (run, other))
    return numbers == others and run.measured.get("checkpoint") == other.measured.get("checkpoint")


def _ordered(variants: Iterable[str], plans: Sequence[Plan]) -> list[str]:
    """Return the variants in the order of the plans, followed by those in no plan in alphabetical order."""
    planned = [name for plan in plans for name in plan.variants]
    found = sorted(set(variants), key=str.lower)
    return sorted(found, key=lambda name: planned.index(name) if name in planned else len(planned))


def _baseline(wanted: str | None, variants: Sequence[str], plans: Sequence[Plan], notes: list[str]) -> str | None:
    if wanted is not None and wanted not in variants:
        raise UserError(f"--baseline {wanted}: no such variant; choose one of {', '.join(variants)}")
    if wanted is not None:
        return wanted
    planned = list(dict.fromkeys(plan.baseline for plan in plans if plan.baseline is not None))
    if len(planned) > 1:
        raise UserError(f"these comparisons have different baselines: {', '.join(planned)}; choose one with --baseline")
    if planned and planned[0] not in variants:
        notes.append(f"The baseline of the plan, {planned[0]}, has no finished run, so no differences are computed.")
        return None
    return planned[0] if planned else None


def _nothing(folders: Sequence[Path], files: Sequence[Path], unfinished: Sequence[Unfinished]) -> str:
    where = ", ".join(map(str, folders))
    if files:
        return f"{files[0]} has only validation metrics; pass runs of `patchword test`"
    if unfinished:
        return f"none of the {len(unfinished)} runs below {where} is finished; resume them with `patchword compare`"
    return f"there is no {RESULTS} below {where}; run `patchword test` or `patchword compare` first"
