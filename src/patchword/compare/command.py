"""The options of `patchword compare`; torch waits until there is something to compute."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections import Counter
from pathlib import Path

from patchword.commands import Parser, count
from patchword.compare.plan import Plan
from patchword.compare.run import Run
from patchword.configs_path import find_config
from patchword.errors import InputError

SMALL = "configs/compare_small.yaml"
EPILOG = """\
Each run is an ordinary `patchword fit` and `patchword test` with its own folder, VARIANT/seed_N. The same command goes
on with what is left: finished runs are left out, interrupted ones resume from their last checkpoint. At the end
`patchword report` gathers the results.

  patchword compare                                        (CLIP and SPARC, two seeds, one epoch: some minutes)
  patchword compare --config configs/compare.yaml
  patchword compare --config configs/ablations/sparc_threshold.yaml --seeds 0 1 --jobs 2
  patchword compare --config configs/compare.yaml --only CLIP SPARC --trainer.max_epochs 1 --out runs/short
  patchword compare --config configs/compare.yaml --dry-run > commands.txt    (one line per run, for a scheduler)
  sbatch --array 1-30 --wrap 'eval "$(sed -n ${SLURM_ARRAY_TASK_ID}p commands.txt)"'
"""


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = Parser(
        "compare",
        description="Train and test variants over seeds. Variants of a seed see the same data in the same order and "
        "begin with the same encoders, so that their differences are paired.",
        usage="patchword compare [--config PLAN] [options] [--KEY VALUE for every run ...]",
        epilog=EPILOG,
    )
    add = made.add_argument
    add(
        "--config",
        default=SMALL,
        metavar="PLAN",
        help="a YAML file with name, claim, variants ... (default: %(default)s)",
    )
    add("--out", type=Path, metavar="DIR", help="where the runs are (default: runs/<name of the plan>)")
    add("--only", nargs="+", metavar="VARIANT", help="leave out the other variants")
    add("--seeds", nargs="+", type=int, metavar="N", help="instead of the plan's")
    add("--jobs", type=count, default=1, help="runs at a time; they share the CPU's cores (default: %(default)s)")
    add("--dry-run", action="store_true", help="print one ordinary command for each run that is left, and end")
    return made


def main(arguments: list[str]) -> None:
    """Carry out the grid and report; exit with 1 if a run failed, 130 if interrupted by Ctrl-C.

    Args:
        arguments: The command line from `compare` on.
    """
    options, further = parser().parse_known_args(arguments[1:])
    plan = Plan.read(find_config(options.config))
    plan.seeds = list(dict.fromkeys(options.seeds or plan.seeds))
    if unknown := [name for name in options.only or [] if name not in plan.variants]:
        raise InputError(f"--only {unknown[0]}: the plan has the variants {', '.join(plan.variants)}")
    out = options.out or Path("runs") / plan.name
    wanted = [name for name in plan.variants if name in (options.only or plan.variants)]
    runs = planned(plan, wanted, out, every_run(further))
    for run in runs:
        run.require_same()
    if options.dry_run:
        left = [run for run in runs if not run.finished]
        sys.stderr.write(f"{len(left)} of {len(runs)} runs are left\n")
        sys.stdout.writelines(run.line() + "\n" for run in left)
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        there = [name for name in plan.variants if name in wanted or (out / name).is_dir()]
        plan.variants = {name: plan.variants[name] for name in there}
        plan.baseline = plan.baseline if plan.baseline in there else None
        plan.write(out / "compare.yaml")
    except OSError as error:
        raise InputError(f"--out {out}: {error.strerror}") from error
    _carry_out(plan, runs, out, options.jobs)


def planned(plan: Plan, variants: list[str], out: Path, further: list[str]) -> list[Run]:
    """The runs, seed by seed, so that whoever stops early has all variants of some seeds.

    Raises:
        InputError: If a configuration that a run names does not exist.
    """
    runs = [
        Run(variant, seed, out / variant / f"seed_{seed}", (*plan.arguments(variant, seed), *further))
        for seed in plan.seeds
        for variant in variants
    ]
    for run in runs:
        files = [
            value for option, value in zip(run.arguments[::2], run.arguments[1::2], strict=True) if option == "--config"
        ]
        if missing := [file for file in files if not find_config(file).is_file()]:
            raise InputError(f"the variant '{run.variant}' names {missing[0]}, and there is no such file")
    return runs


def every_run(further: list[str]) -> list[str]:
    """What was typed for all runs, as pairs of option and value.

    Raises:
        InputError: If it is not made of pairs.
    """
    words = [word for typed in further for word in (typed.split("=", 1) if typed.startswith("--") else [typed])]
    for option, value in zip(words[::2], [*words[1::2], "--"], strict=False):
        if not option.startswith("--") or "." not in option or value.startswith("--"):
            raise InputError(f"{option}: compare takes its own options and pairs of --KEY VALUE, where KEY has a dot")
        if option.startswith(("--trainer.logger", "--ckpt_path")):
            raise InputError(f"{option}: compare gives every run a folder of its own; use --out")
    return words


def _carry_out(plan: Plan, runs: list[Run], out: Path, jobs: int) -> None:
    from rich.console import Console
    from rich.markup import escape

    from patchword.compare.grid import Grid, bar

    console = Console()
    console.print(f"[bold]{escape(plan.name)}[/]: {escape(plan.claim)}", highlight=False, soft_wrap=True)
    console.print(f"{len(runs)} runs in {escape(str(out))}", highlight=False, soft_wrap=True)
    grid = Grid(runs, jobs, _threads(jobs))
    with bar() as progress:
        outcomes = grid.carry_out(progress)
    ends = Counter(outcome.end for outcome in outcomes)
    console.print(", ".join(f"{number} {end}" for end, number in ends.items()), highlight=False)
    if grid.stopped:
        sys.stderr.write("patchword: interrupted; the same command goes on\n")
        raise SystemExit(128 + signal.Signals(grid.stopped))
    if ends["finished"] + ends["was finished"]:
        from patchword.report.command import main as report

        report(["report", str(out)])
    if ends["failed"]:
        raise SystemExit(1)


def _threads(jobs: int) -> int | None:
    """Threads of each of several runs, unless the user has said it."""
    if jobs == 1 or "OMP_NUM_THREADS" in os.environ:
        return None
    return max(1, (os.cpu_count() or 1) // jobs)
