"""The options of `patchword verify`, its table and its CSV file; torch waits until there is something to compute."""

from __future__ import annotations

import argparse
import datetime
import platform
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchword import __version__
from patchword.commands import Parser, append, count, device, device_name, require_columns, require_writable
from patchword.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from patchword.verify.modes import Difference

EPILOG = """\
Every figure is the largest relative difference, of the loss or of a parameter's gradient, from one process that sees
the whole batch in float64. gather, ring, two-pass and FSDP2 run in float64, too: what differs there by more than 1e-7
is wrong, and the command ends with exit code 1. fp32 and bf16 are what rounding costs, and are only shown.

On this machine the processes are started for you (--ranks). On a cluster start the command as you start your
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
        description="Loss and gradients of every objective in every mode of training, against one process.",
        epilog=EPILOG,
    )
    add = made.add_argument
    add("--objectives", nargs="+", metavar="NAME", help="ours by name, others as my_module.MyObjective (default: all)")
    add("--ranks", nargs="+", type=count, metavar="N", help="numbers of processes (default: 2 3, or all GPUs)")
    add("--batch", type=count, default=4, help="pairs of each process (default: %(default)s)")
    add("--device", default="auto", help="cpu or cuda; auto takes a GPU where there is one")
    add("--csv", type=Path, metavar="FILE", help="add the figures, with versions, device and date, to this file")
    return made


def main(arguments: list[str]) -> None:
    """Compare, print the table, write the file; exit with 1 if something is wrong.

    Args:
        arguments: The command line from `verify` on.
    """
    options = parser().parse_args(arguments[1:])
    if options.csv is not None:
        require_writable(options.csv)

    from patchword.named import OURS, build
    from patchword.verify import processes
    from patchword.verify.modes import Difference

    names = list(dict.fromkeys(options.objectives or OURS))
    for name in names:
        try:
            build(OURS.get(name, name))
        except InputError as error:
            raise InputError(f"--objectives {name}: {error}") from error
    where = device(options.device)
    if options.csv is not None:
        require_columns(options.csv, list(rows([Difference("", "", 1, 0.0, 0.0, "", True)], options.batch, where)[0]))
    environment = processes.launcher()
    if environment is not None and options.ranks:
        raise InputError(f"--ranks: {environment.world_size()} processes have been started already; leave it out")
    if environment is None:
        found = _started_here(names, options.ranks or _usual_ranks(where), options.batch, where)
    else:
        found = _started_by(environment, names, options.batch, where)
        if environment.global_rank() > 0:
            raise SystemExit(0 if all(difference.right for difference in found) else 1)
    _report(found, options, where)


def table(found: list[Difference], batch: int, where: str) -> Table:
    """What a person reads: a row for each objective, a column for each mode."""
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
        caption="\n".join(wrong) or "no difference but rounding",
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
        cells = {_column(d): d for d in found if d.objective == name}
        shown = (_cell(cells[column]) for column in columns)
        made.add_row(escape(name.rpartition(".")[2]), *shown)
    return made


def rows(found: list[Difference], batch: int, where: str) -> list[dict[str, Any]]:
    """What a program reads: a row for each figure, with everything that it depends on."""
    import torch

    settled = {
        "batch": batch,
        "device": where,
        "device_name": device_name(where),
        "patchword": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    return [asdict(difference) | settled for difference in found]


def _started_here(names: list[str], ranks: list[int], batch: int, where: str) -> list[Difference]:
    from rich.console import Console

    from patchword.verify.modes import differences
    from patchword.verify.processes import spawn

    found = []
    with Console(stderr=True).status("") as status:
        for number in dict.fromkeys([1, *ranks]):
            status.update(f"{number} process{'es' if number > 1 else ''}")
            found += list(differences(names, 1, batch, where)) if number == 1 else spawn(names, number, batch, where)
    return found


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


def _report(found: list[Difference], options: argparse.Namespace, where: str) -> None:
    from rich.console import Console

    console = Console()
    console.print(table(found, options.batch, where))
    if options.csv is not None:
        append(options.csv, rows(found, options.batch, where))
        console.print(f"written: {options.csv}", soft_wrap=True)
    if not all(difference.right for difference in found):
        raise SystemExit(1)


def _usual_ranks(where: str) -> list[int]:
    import torch

    return [torch.cuda.device_count()] if where.startswith("cuda") else [2, 3]


def _column(difference: Difference) -> str:
    mode = difference.mode.replace("-", "-\n")
    return f"N={difference.ranks}\n{mode}"


def _cell(difference: Difference) -> str:
    figure = f"{max(difference.loss, difference.gradient):.0e}"
    return figure if difference.right else f"[bold red]{figure}![/]"
