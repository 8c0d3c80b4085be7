"""The options, table and CSV file of `patchword verify`; torch is imported only after the options are parsed."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from patchword.commands.options import (
    Parser,
    add_measurement_options,
    append,
    count,
    device,
    provenance,
    require_addable,
)
from patchword.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from patchword.verify.modes import Difference

EPILOG = """\
Every figure is the largest relative difference, of the loss or of a parameter's gradient, from one process that sees
the complete batch in float64. all_gather, ring, two-pass and FSDP2 also run in float64: a difference of more than 1e-7
is an error, and the exit code is 1. fp32 and bf16 show the effect of rounding and cannot fail.

This verifies your machines: processes, network and GPUs. For the rules that an objective of your own must keep, such as
ignoring padding, use `patchword check my_module.MyObjective`, which takes seconds on a CPU.

On this machine, the command starts the processes itself (--ranks). On a cluster, start it in the same way as your
training; it then verifies those processes, their network and their GPUs:

  patchword verify
  patchword verify --objectives SPARC best_patch.BestPatch --ranks 4
  torchrun --nproc-per-node 8 -m patchword verify
  srun --ntasks-per-node 8 patchword verify --csv verified.csv
"""


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = Parser(
        "verify",
        description="Compare the loss and gradients of every objective in every mode of training with one process.",
        epilog=EPILOG,
    )
    add_measurement_options(made)
    add = made.add_argument
    add("--ranks", nargs="+", type=count, metavar="N", help="numbers of processes (default: 2 3, or all GPUs)")
    add("--batch", type=count, default=4, help="number of pairs per process (default: %(default)s)")
    return made


def main(arguments: list[str]) -> None:
    """Compare the modes, print the table, and write the CSV file; `arguments` starts with `verify`.

    The exit code is 1 if a difference is too large.
    """
    options = parser().parse_args(arguments[1:])

    import torch
    from rich.console import Console

    from patchword.commands.objective_names import OURS, build
    from patchword.verify import processes
    from patchword.verify.modes import Difference

    names = list(dict.fromkeys(options.objectives or OURS))
    for name in names:
        try:
            build(name)
        except UserError as error:
            raise UserError(f"--objectives {name}: {error}") from error
    where = device(options.device)
    if options.csv is not None:
        require_addable(options.csv, rows([Difference("", "", 1, 0.0, 0.0, "", True)], options.batch, where)[0])
    environment = processes.launcher()
    if environment is not None and options.ranks:
        raise UserError(f"--ranks: the launcher has started {environment.world_size()} processes; omit --ranks")
    if environment is None:
        usual = [torch.cuda.device_count()] if where.startswith("cuda") else [2, 3]
        found = _started_here(names, options.ranks or usual, options.batch, where)
    else:
        found = _started_by(environment, names, options.batch, where)
        if environment.global_rank() > 0:
            raise SystemExit(0 if all(difference.right for difference in found) else 1)
    console = Console()
    console.print(table(found, options.batch, where))
    if options.csv is not None:
        append(options.csv, rows(found, options.batch, where))
        console.print(f"written: {options.csv}", soft_wrap=True)
    if not all(difference.right for difference in found):
        raise SystemExit(1)


def table(found: list[Difference], batch: int, where: str) -> Table:
    """Return the table for the terminal, with one row per objective and one column per mode."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    wrong = [
        f"{escape(d.objective)}, {d.ranks} process(es), {d.mode}: loss {d.loss:.1e}; gradient {d.gradient:.1e}, of "
        f"{d.parameter}"
        for d in found
        if not d.right
    ]
    head = "Largest relative difference of loss and gradients from one process"
    made = Table(
        title=f"{head}\nN processes, {batch} pairs each, {where}",
        caption="\n".join(wrong) or "no differences except rounding",
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=0,
    )
    columns = list(dict.fromkeys(map(_column, found)))
    made.add_column("", no_wrap=True)
    for column in columns:
        made.add_column(column, justify="right", no_wrap=True)
    for name in dict.fromkeys(d.objective for d in found):
        cells = {_column(d): _cell(d) for d in found if d.objective == name}
        made.add_row(escape(name.rpartition(".")[2]), *(cells[column] for column in columns))
    return made


def rows(found: list[Difference], batch: int, where: str) -> list[dict[str, Any]]:
    """Return the rows of the CSV file: one row per difference with its setting, versions and date."""
    settled = {"batch": batch, "device": where} | provenance(where)
    return [asdict(difference) | settled for difference in found]


def _started_here(names: list[str], ranks: list[int], batch: int, where: str) -> list[Difference]:
    from rich.console import Console

    from patchword.verify.modes import differences
    from patchword.verify.processes import spawn

    found: list[Difference] = []
    with Console(stderr=True).status("") as status:
        for number in dict.fromkeys([1, *ranks]):
            status.update(f"{number} process{'es' if number > 1 else ''}")
            if number == 1:
                found += differences(names, 1, batch, where)
            else:
                found += spawn(_on_rank, names, number, batch, ranks=number, device=where)[0]
    return found


def _on_rank(where: str, names: list[str], ranks: int, batch: int) -> list[Difference]:
    from patchword.verify.modes import differences

    return list(differences(names, ranks, batch, where))


def _started_by(environment: Any, names: list[str], batch: int, where: str) -> list[Difference]:
    import torch.distributed as dist

    from patchword import distributed
    from patchword.verify.modes import differences
    from patchword.verify.processes import join

    where = join(environment, where)
    with distributed.alone():
        found = list(differences(names, 1, batch, where))
    found += differences(names, environment.world_size(), batch, where)
    dist.destroy_process_group()
    return found


def _column(difference: Difference) -> str:
    mode = difference.mode.replace("-", "-\n").replace("_", "_\n")
    return f"N={difference.ranks}\n{mode}"


def _cell(difference: Difference) -> str:
    figure = f"{max(difference.loss, difference.gradient):.0e}"
    return figure if difference.right else f"[bold red]{figure}![/]"
