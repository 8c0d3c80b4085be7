"""The options and the output of `patchword check`; torch is imported only after the options are parsed."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from patchword.commands.options import Parser
from patchword.errors import UserError

if TYPE_CHECKING:
    import torch

    from patchword.objective import Objective

EPILOG = """\
Each property is checked on a few random pairs, on the CPU, and has a line of its own. The exit code is 1 if one failed.
If your objective lacks a property on purpose, leave it out: `--without patch_order_loss` if the loss uses positions,
`--without gradients_are_exact` if a part of it is held constant (detach).

This checks what an objective computes. `patchword verify` checks your machines: it trains towers on several processes,
on GPUs or a cluster, in every mode.

  patchword check my_module.MyObjective
  patchword check my_module.a_function_that_builds_it
  patchword check SPARC --without ranks
"""


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = Parser(
        "check", description="Check one objective against the contract that all objectives keep.", epilog=EPILOG
    )
    add = made.add_argument
    add("objective", metavar="NAME", help="one of ours by name, or another as my_module.MyObjective")
    add("--without", nargs="+", default=[], metavar="PROPERTY", help="properties that the objective need not have")
    return made


def main(arguments: list[str]) -> None:
    """Check the properties and print a line for each; `arguments` starts with `check`.

    The exit code is 1 if the objective lacks a property. Nothing more is checked if its answers have a wrong form.
    """
    options = parser().parse_args(arguments[1:])

    from patchword.commands.objective_names import build
    from patchword.contract.properties import PROPERTIES, answers
    from patchword.contract.ranks import ranks

    properties: dict[str, Callable[..., None]] = {**{one.__name__: one for one in PROPERTIES}, "ranks": ranks}
    for name in options.without:
        if name not in properties:
            raise UserError(f"--without {name}: there is no such property; choose from {', '.join(properties)}")
    try:
        build(options.objective)
    except UserError as error:
        raise UserError(f"{options.objective}: {error}") from error
    failed = False
    for name, check in properties.items():
        if name in options.without:
            print(f"left out  {name}")
            continue
        arguments_of = {"on_ranks": _on_ranks} if check is ranks else {}
        reason = _failure(partial(check, partial(_built, options.objective), **arguments_of))
        print(f"ok        {_title(check)}" if reason is None else f"FAILED    {name}: {reason}", flush=True)
        failed |= reason is not None
        if failed and check is answers:
            break
    if failed:
        raise SystemExit(1)


def _title(check: Callable[..., None]) -> str:
    """The name of a property, and the first line of its docstring."""
    first = (check.__doc__ or "").splitlines()[0].removesuffix(".")
    return f"{check.__name__}: {first}"


def _failure(check: Callable[[], None]) -> str | None:
    """Why an objective lacks a property, in one line; None if it has it."""
    from torch.multiprocessing.spawn import ProcessRaisedException

    from patchword.commands.blame import described

    try:
        check()
    except ProcessRaisedException as error:
        return str(error).strip().splitlines()[-1]
    except Exception as error:  # the code of the objective may raise anything
        return described(error)
    return None


def _built(name: str, dtype: torch.dtype) -> Objective:
    """The objective with the same parameters at every call, whose forward passes start from the same state."""
    import torch

    from patchword.commands.objective_names import build
    from patchword.contract.sample import DIM

    torch.manual_seed(0)
    objective = build(name)
    objective.build(DIM)
    objective.to(dtype)
    buffers = {name: value.clone() for name, value in objective.named_buffers()}

    def restart(*_: Any) -> None:
        torch.manual_seed(0)
        for name, value in objective.named_buffers():
            value.data.copy_(buffers[name])

    objective.register_forward_pre_hook(restart)
    return objective


def _on_ranks(work: Callable[..., Any], *arguments: Any, ranks: int) -> list[Any]:
    """[work(rank, *arguments) for each rank], computed by new processes."""
    from patchword.verify.processes import spawn

    return spawn(_of_rank, work, arguments, ranks=ranks)


def _of_rank(device: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    from patchword import distributed

    return work(distributed.rank(), *arguments)
