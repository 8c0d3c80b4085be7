"""The options, table and CSV file of `patchword bench`; torch is imported only after the options are checked."""

from __future__ import annotations

import argparse
import statistics
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from patchword.commands.options import (
    Parser,
    add_measurement_options,
    append,
    count,
    device,
    device_name,
    provenance,
    require_addable,
)
from patchword.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from patchword.bench.candidates import Setting
    from patchword.bench.measure import Result

EPILOG = """\
Time is the median time of a forward and a backward pass; all rows take turns of 20 ms or more. Memory is the peak of
one pass minus the memory of the features and of the objective's parameters. Objectives compute in float32 (or float64)
for features of any type; the precision of the plain formulas and of open_clip depends on autocast.

examples:
  patchword bench
  patchword bench --objectives CLIP SPARC best_patch.BestPatch --batch 32 --csv cost.csv
  patchword bench --objectives CLIP SigLIP --batch 8192 --patches 1 --tokens 1 --against open_clip
  patchword bench --pass interactions --batch 32
  patchword bench --pass score --batch 256 --texts 256 --device cuda --dtype bfloat16
"""


WORK = {
    "train": "the loss, forward and backward",
    "score": "scores of all images with all texts",
    "interactions": "interactions of all patches and words of a pair",
}
SAMPLES = (100, 1000)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = Parser(
        "bench",
        description="Measure time and peak memory of every objective, its plain formula and open_clip's loss.",
        epilog=EPILOG,
    )
    add_measurement_options(made)
    add = made.add_argument
    others = ["plain", "open_clip"]
    add("--against", nargs="*", default=others, choices=others, help="what to compare with")
    works = ", ".join(WORK.values())
    add("--pass", dest="work", default="train", choices=list(WORK), help=f"what is measured: {works}")
    add("--batch", type=count, default=64, help="pairs; with --pass score, images (default: %(default)s)")
    add("--texts", type=count, help="with --pass score, texts (default: as many as images)")
    add("--patches", type=count, default=196, help="patches of an image (default: %(default)s)")
    add("--tokens", type=count, default=32, help="tokens of the longest caption (default: %(default)s)")
    add("--dim", type=count, default=256, help="width of the shared space (default: %(default)s)")
    dtypes = ["float32", "bfloat16", "float16", "float64"]
    add("--dtype", default="float32", choices=dtypes, help="type of the features; half precision runs under autocast")
    add("--repeats", type=count, default=5, help="timed runs of each row, after one warm-up run (default: %(default)s)")
    add("--threads", type=count, help="number of CPU threads (default: torch's choice)")
    add("--seed", type=int, default=0, help="seed of the random features (default: %(default)s)")
    return made


def main(arguments: list[str]) -> None:
    """Measure the costs, print the table, and write the CSV file; `arguments` starts with `bench`."""
    options = parser().parse_args(arguments[1:])
    if options.texts is not None and options.work != "score":
        raise UserError("--texts requires --pass score: otherwise every image has one text (--batch)")
    if options.objectives is not None and options.work == "interactions":
        raise UserError("--objectives cannot be used with --pass interactions, which depends on no objective")

    from rich.console import Console

    from patchword.bench.candidates import Interactions, candidates
    from patchword.bench.measure import Result, measure
    from patchword.commands.objective_names import OURS

    setting = _setting(options)
    found: list[Any]
    if setting.work == "interactions":
        found = [Interactions("pair_interactions", "exact", None)]
        found += [Interactions("pair_interactions", f"{n} samples", n) for n in SAMPLES]
    else:
        found = candidates(options.objectives or OURS, options.against, setting)
    if options.csv is not None:
        require_addable(options.csv, rows([Result(found[0])], setting, options.repeats)[0])
    with Console(stderr=True).status("") as status:
        results = measure(found, setting, options.repeats, status.update)
    Console().print(table(results, setting, options.repeats))
    if options.csv is not None:
        append(options.csv, rows(results, setting, options.repeats))
        Console().print(f"written: {options.csv}", soft_wrap=True)


def table(results: list[Result], setting: Setting, repeats: int) -> Table:
    """Return the table for the terminal."""
    import torch
    from rich.markup import escape
    from rich.table import Table

    sizes = f"I={setting.batch} T={setting.texts}" if setting.work == "score" else f"B={setting.batch}"
    sizes += f" P={setting.patches} L={setting.tokens} D={setting.dim} {setting.dtype}"
    machine = device_name(setting.device)
    if setting.device == "cpu":
        machine += f" ({setting.threads} thread{'s' if setting.threads > 1 else ''})"
    notes = ["ratio: the first row of the objective divided by this row"]
    if setting.work == "interactions":
        notes.append("error: root mean square error divided by the standard deviation of the exact values")
    failures = [r for r in results if r.failure]
    notes += [f"{r.candidate.name}, {r.candidate.by}: {escape(r.failure)}" for r in failures]
    found = Table(
        title=f"{WORK[setting.work]}, {sizes}\n{machine}, torch {torch.__version__}, median of {repeats}",
        caption="\n".join(notes),
        title_justify="left",
        caption_justify="left",
    )
    found.add_column("objective")
    found.add_column("by")
    columns = ["time\nms", "peak\nMiB", "time\nratio", "peak\nratio"]
    for column in [*columns, "error"] if setting.work == "interactions" else columns:
        found.add_column(column, justify="right")
    for result in results:
        own = result is _first(result, results)
        name = result.candidate.name.rpartition(".")[2] if own else ""
        if result.failure:
            found.add_row(name, result.candidate.by, "failed", style="red")
            continue
        time, memory = _ratios(result, results)
        found.add_row(
            name,
            result.candidate.by,
            f"{1e3 * result.seconds:.1f}",
            "" if result.peak is None else f"{result.peak / 2**20:.1f}",
            "" if own or time is None else f"{time:.2f}",
            "" if own or memory is None else f"{memory:.2f}",
            *([] if result.error is None else [f"{result.error:.3f}"]),
            style="" if own else "dim",
        )
    return found


def rows(results: list[Result], setting: Setting, repeats: int) -> list[dict[str, Any]]:
    """Return the rows of the CSV file: one row per candidate with its numbers, setting, versions and date."""
    found = []
    sizes = {name: value for name, value in asdict(setting).items() if name not in ("work", "threads", "seed")}
    for result in results:
        time, memory = _ratios(result, results)
        found.append(
            {
                "objective": result.candidate.name,
                "by": result.candidate.by,
                "pass": setting.work,
                **sizes,
                "status": result.failure or "ok",
                "seconds": result.seconds if result.total else None,
                "seconds_min": min(result.total, default=None),
                "seconds_max": max(result.total, default=None),
                "seconds_forward": statistics.median(result.forward) if result.total else None,
                "peak_bytes": result.peak,
                "time_ratio": time,
                "peak_ratio": memory,
                "value": result.value,
                "error": result.error,
                "repeats": repeats,
                "threads": setting.threads,
                "seed": setting.seed,
                "open_clip": version("open_clip_torch") if result.candidate.by == "open_clip" else None,
                **provenance(setting.device),
            }
        )
    return found


def _setting(options: argparse.Namespace) -> Setting:
    """Convert the options to a setting, and check that the device exists."""
    import torch

    from patchword.bench.candidates import Setting

    return Setting(
        work=options.work,
        batch=options.batch,
        texts=options.texts or options.batch,
        patches=options.patches,
        tokens=options.tokens,
        dim=options.dim,
        dtype=options.dtype,
        device=device(options.device),
        threads=options.threads or torch.get_num_threads(),
        seed=options.seed,
    )


def _first(result: Result, results: list[Result]) -> Result:
    """Return patchword's row of the same name, which the other rows are compared with."""
    return next(r for r in results if r.candidate.name == result.candidate.name)


def _ratios(result: Result, results: list[Result]) -> tuple[float | None, float | None]:
    """Return the time and the memory of the first row of the same name, divided by this row's; None if unknown."""
    own = _first(result, results)
    if not own.total or not result.total:
        return None, None
    return own.seconds / result.seconds, own.peak / result.peak if own.peak and result.peak else None
