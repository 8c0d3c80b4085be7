"""The options of `patchword compare`; this process does not import torch until it writes the report."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from patchword.commands.config_files import existing_config, find_config
from patchword.commands.options import Parser, count
from patchword.compare.plan import Plan
from patchword.compare.run import Run
from patchword.errors import UserError
from patchword.files.printable import printable

if TYPE_CHECKING:
    from patchword.compare.executors import Executor
    from patchword.compare.grid import Outcome

SMALL = "configs/compare_small.yaml"
EPILOG = """\
Each run is an ordinary `patchword fit` and `patchword test` in its own folder, VARIANT/seed_N. To resume a comparison,
type the same command again: finished runs are skipped, and interrupted runs resume from their last checkpoint. At the
end `patchword report` collects the results.

  patchword compare                                        (CLIP and SPARC, two seeds, one epoch: a few minutes)
  patchword compare --config configs/compare.yaml
  patchword compare --config configs/ablations/sparc_threshold.yaml --seeds 0 1 --jobs 2
  patchword compare --config configs/compare.yaml --only CLIP SPARC --trainer.max_epochs 1 --out runs/short
  patchword compare --config configs/compare.yaml --dry-run > commands.txt    (one line per run, for a scheduler)
  sbatch --array 1-30 --wrap 'eval "$(sed -n ${SLURM_ARRAY_TASK_ID}p commands.txt)"'
  patchword compare --config configs/compare.yaml --submitit slurm_partition=gpu gpus_per_node=1 timeout_min=240
"""


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = Parser(
        "compare",
        description="Train and test variants over several seeds. For one seed, all variants see the same data in the "
        "same order and start from the same encoder weights, so that their differences are paired.",
        usage="patchword compare [--config PLAN] [options] [--KEY VALUE for every run ...]",
        epilog=EPILOG,
    )
    add = made.add_argument
    plan = "a YAML file with name, claim, variants ... (default: %(default)s)"
    add("--config", default=SMALL, metavar="PLAN", help=plan)
    add("--out", type=Path, metavar="DIR", help="the folder of the runs (default: runs/<name of the plan>)")
    add("--only", nargs="+", metavar="VARIANT", help="run only these variants")
    add("--seeds", nargs="+", type=int, metavar="N", help="use these seeds instead of the plan's")
    jobs = "number of runs at a time; they share the CPU cores (default: %(default)s)"
    add("--jobs", type=count, default=1, help=jobs)
    parameters = "submit each run as a job of submitit (SLURM), with these parameters of its AutoExecutor, and wait"
    add("--submitit", nargs="+", metavar="KEY=VALUE", help=parameters)
    add("--dry-run", action="store_true", help="only print one command line for each unfinished run")
    return made


def main(arguments: list[str]) -> None:
    """Run the grid and write the report; `arguments` starts with `compare`.

    The exit code is 1 if a run failed or is active in another process, and 130 after Ctrl-C.
    """
    options, further = parser().parse_known_args(arguments[1:])
    plan, runs, out = prepare(options.config, options.out, options.only, options.seeds, further)
    if options.dry_run:
        left = [run for run in runs if not run.finished]
        sys.stderr.write(f"{len(left)} of {len(runs)} runs are not finished\n")
        sys.stdout.writelines(run.line() + "\n" for run in left)
        return
    write_plan(plan, runs, out)
    _carry_out(plan, runs, out, options.jobs, options.submitit)


def prepare(
    config: str,
    out: Path | None = None,
    only: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    further: Sequence[str] = (),
) -> tuple[Plan, list[Run], Path]:
    """Read a plan.

    Args:
        config: The file of the plan.
        out: The folder of the runs; None for runs/<name of the plan>.
        only: The variants; None for all of them.
        seeds: The seeds; None for those of the plan.
        further: Options for every run, alternating with their values.

    Returns:
        The plan, its runs, sorted by seed, and their folder.

    Raises:
        UserError: If the plan is not valid, or a folder contains a run with other settings.
    """
    plan = Plan.read(existing_config(config))
    plan.seeds = list(dict.fromkeys(seeds or plan.seeds))
    if unknown := [name for name in only or [] if name not in plan.variants]:
        raise UserError(f"--only {unknown[0]}: the plan has the variants {', '.join(plan.variants)}")
    out = out or Path("runs") / plan.name
    wanted = [name for name in plan.variants if name in (only or plan.variants)]
    runs = planned(plan, wanted, out, every_run(list(further)))
    for run in runs:
        run.require_same()
        if run.broken:
            sys.stderr.write(f"patchword: warning: {printable(run.broken, 500)}; testing {run.name} again\n")
    return plan, runs, out


def write_plan(plan: Plan, runs: Sequence[Run], out: Path) -> None:
    """Write the plan with the variants that have runs in the folder, now or from before.

    Raises:
        UserError: If the folder cannot be written to.
    """
    wanted = {run.variant for run in runs}
    try:
        out.mkdir(parents=True, exist_ok=True)
        there = [name for name in plan.variants if name in wanted or (out / name).is_dir()]
        plan.variants = {name: plan.variants[name] for name in there}
        plan.baseline = plan.baseline if plan.baseline in there else None
        plan.write(out / "compare.yaml")
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}") from error


def compare(
    config: str,
    executor: Executor,
    out: Path | None = None,
    only: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> list[Outcome]:
    """Carry out a plan with an executor, and write the report. The arguments are those of `prepare`.

    Returns:
        How each run ended.
    """
    from patchword.compare.executors import execute_all
    from patchword.report.command import main as report

    plan, runs, out = prepare(config, out, only, seeds)
    write_plan(plan, runs, out)
    outcomes = execute_all(runs, executor)
    if any(run.finished for run in runs):
        report(["report", str(out)])
    return outcomes


def planned(plan: Plan, variants: list[str], out: Path, further: list[str]) -> list[Run]:
    """Return the runs, sorted by seed, so that a comparison that is stopped early has all variants of some seeds.

    Raises:
        UserError: If a configuration file of a run does not exist.
    """
    runs = [
        Run(variant, seed, out / variant / f"seed_{seed}", (*plan.arguments(variant, seed), *further))
        for seed in plan.seeds
        for variant in variants
    ]
    for run in runs:
        for option, value in run.options:
            if option == "--config" and not find_config(value).is_file():
                raise UserError(f"the variant '{run.variant}' names the file {value}, which does not exist")
    return runs


def every_run(further: list[str]) -> list[str]:
    """Return the options for all runs as alternating options and values.

    Raises:
        UserError: If an option has no value, has no dot, or is set by `compare` itself.
    """
    words = [word for typed in further for word in (typed.split("=", 1) if typed.startswith("--") else [typed])]
    for option, value in zip(words[::2], [*words[1::2], "--"], strict=False):
        if not option.startswith("--") or "." not in option or value.startswith("--"):
            raise UserError(f"{option}: compare accepts its own options and pairs of --KEY VALUE, where KEY has a dot")
        if option.startswith(("--trainer.logger", "--ckpt_path")):
            raise UserError(f"{option}: compare sets this option itself; set the folder of the runs with --out")
    return words


def _carry_out(plan: Plan, runs: list[Run], out: Path, jobs: int, submitit: list[str] | None) -> None:
    from rich.console import Console
    from rich.markup import escape

    from patchword.compare.executors import submitit_executor
    from patchword.compare.grid import Grid, bar

    console = Console()
    claim = escape(printable(" ".join(plan.claim.split()), 2000))
    console.print(f"[bold]{escape(plan.name)}[/]: {claim}", highlight=False, soft_wrap=True)
    console.print(f"{len(runs)} runs in {escape(str(out))}", highlight=False, soft_wrap=True)
    grid = Grid(runs, jobs, _threads(jobs))
    if submitit is None:
        with bar() as progress:
            outcomes = grid.carry_out(progress)
    else:
        outcomes = _submitted(runs, submitit_executor(submitit, out / "jobs", plan.name), out)
    ends = Counter(outcome.end for outcome in outcomes)
    console.print(", ".join(f"{number} {end}" for end, number in ends.items()), highlight=False)
    if grid.stopped:
        sys.stderr.write("patchword: interrupted; run the same command again to resume\n")
        raise SystemExit(128 + signal.Signals(grid.stopped))
    if ends["finished"] + ends["already finished"]:
        from patchword.report.command import main as report

        report(["report", str(out)])
    if left := [run for run in runs if not run.finished]:
        when = " when the other process has ended" if ends["active in another process"] else ""
        words = f"{len(left)} of {len(runs)} runs are not finished; run the same command again to resume{when}"
        sys.stderr.write(f"patchword: {words}\n")
        raise SystemExit(1)


def _submitted(runs: list[Run], executor: Executor, out: Path) -> list[Outcome]:
    """Submit the runs as jobs, wait for them, and print why runs failed."""
    from patchword.compare.executors import execute_all

    print(f"submitting {sum(not run.finished for run in runs)} jobs; their logs are in {out / 'jobs'}", flush=True)
    outcomes = execute_all(runs, executor)
    for outcome in outcomes:
        if outcome.reason:
            print(f"{outcome.run.name}: failed: {printable(outcome.reason, 2000)}")
    return outcomes


def _threads(jobs: int) -> int | None:
    """Return the number of threads per run; None for the default, or if the user has set OMP_NUM_THREADS."""
    if jobs == 1 or "OMP_NUM_THREADS" in os.environ:
        return None
    return max(1, (os.cpu_count() or 1) // jobs)
