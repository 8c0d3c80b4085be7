"""The options of `patchword bench`, its table and its CSV file; torch waits until there is something to measure."""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchword import __version__
from patchword.commands import Parser, append, count, device, device_name, require_columns, require_writable
from patchword.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from patchword.bench.candidates import Setting
    from patchword.bench.measure import Result

EPILOG = """\
Time is the median of a forward and a backward pass, all rows taking turns. Memory is the most that one pass holds above
the features and the objective's parameters. Objectives compute in float32 (or float64) whatever the features' type;
plain formulas and open_clip do what autocast lets them.

examples:
  patchword bench
  patchword bench --objectives CLIP SPARC best_patch.BestPatch --batch 32 --csv cost.csv
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
        description="Time and peak memory of every objective, beside the plain formula and open_clip's loss.",
        epilog=EPILOG,
    )
    add = made.add_argument
    add("--objectives", nargs="+", metavar="NAME", help="ours by name, others as my_module.MyObjective (default: all)")
    add("--against", nargs="*", default=["plain", "open_clip"], choices=["plain", "open_clip"], help="rows beside them")
    add(
        "--pass", dest="work", default="train", choices=list(WORK), help="what is measured: " + ", ".join(WORK.values())
    )
    add("--batch", type=count, default=64, help="pairs; with --pass score, images (default: %(default)s)")
    add("--texts", type=count, help="with --pass score, texts (default: as many as images)")
    add("--patches", type=count, default=196, help="patches of an image (default: %(default)s)")
    add("--tokens", type=count, default=32, help="tokens of the longest caption (default: %(default)s)")
    add("--dim", type=count, default=256, help="width of the shared space (default: %(default)s)")
    dtypes = ["float32", "bfloat16", "float16", "float64"]
    add("--dtype", default="float32", choices=dtypes, help="type of the features; half precision runs under autocast")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto takes a GPU where there is one")
    add("--repeats", type=count, default=5, help="timed runs of each, after one that is not (default: %(default)s)")
    add("--threads", type=count, help="threads of the CPU (default: torch's choice)")
    add("--seed", type=int, default=0, help="of the features (default: %(default)s)")
    add("--csv", type=Path, metavar="FILE", help="add the rows, with versions, device and date, to this file")
    return made


def main(arguments: list[str]) -> None:
    """Measure, print the table, write the file.

    Args:
        arguments: The command line from `bench` on.
    """
    options = parser().parse_args(arguments[1:])
    if options.texts is not None and options.work != "score":
        raise InputError("--texts belongs to --pass score: else every image has one text (--batch)")
    if options.objectives is not None and options.work == "interactions":
        raise InputError("--objectives: interactions are those of late interaction, whatever the objective")
    if options.csv is not None:
        require_writable(options.csv)  # before seconds of imports and minutes of measuring

    from rich.console import Console

    from patchword.bench.candidates import Interactions, candidates
    from patchword.bench.measure import Result, measure
    from patchword.named import OURS

    setting = _setting(options)
    found: list[Any]
    if setting.work == "interactions":
        found = [Interactions("pair_interactions", "exact", None)]
        found += [Interactions("pair_interactions", f"{n} samples", n) for n in SAMPLES]
    else:
        found = candidates(options.objectives or OURS, options.against, setting)
    if options.csv is not None:
        require_columns(options.csv, list(rows([Result(found[0])], setting, options.repeats)[0]))
    with Console(stderr=True).status("") as status:
        results = measure(found, setting, options.repeats, status.update)
    Console().print(table(results, setting, options.repeats))
    if options.csv is not None:
        append(options.csv, rows(results, setting, options.repeats))
        Console().print(f"written: {options.csv}", soft_wrap=True)


def table(results: list[Result], setting: Setting, repeats: int) -> Table:
    """What a person reads."""
    from rich.markup import escape
    from rich.table import Table

    sizes = f"I={setting.batch} T={setting.texts}" if setting.work == "score" else f"B={setting.batch}"
    sizes += f" P={setting.patches} L={setting.tokens} D={setting.dim} {setting.dtype}"
    machine = device_name(setting.device)
    if setting.device == "cpu":
        machine += f" ({setting.threads} thread{'s' if setting.threads > 1 else ''})"
    notes = ["ratio: the objective's first row divided by this row"]
    if setting.work == "interactions":
        notes.append("error: root mean square, as a part of the exact values' standard deviation")
    failures = [r for r in results if r.failure]
    notes += [f"{r.candidate.name}, {r.candidate.by}: {escape(r.failure)}" for r in failures]
    found = Table(
        title=f"{WORK[setting.work]}, {sizes}\n{machine}, torch {_torch_version()}, median of {repeats}",
        caption="\n".join(notes),
        title_justify="left",
        caption_justify="left",
    )
    for column in ("objective", "by"):
        found.add_column(column)
    columns = ["time\nms", "peak\nMiB", "time\nratio", "peak\nratio"]
    for column in [*columns, *(["error"] if setting.work == "interactions" else [])]:
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
    """What a program reads: one row per candidate, each with everything that its numbers depend on."""
    found = []
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    for result in results:
        time, memory = _ratios(result, results)
        found.append(
            {
                "objective": result.candidate.name,
                "by": result.candidate.by,
                "pass": setting.work,
                "batch": setting.batch,
                "texts": setting.texts,
                "patches": setting.patches,
                "tokens": setting.tokens,
                "dim": setting.dim,
                "dtype": setting.dtype,
                "device": setting.device,
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
                "device_name": device_name(setting.device),
                "patchword": __version__,
                "torch": _torch_version(),
                "open_clip": _open_clip_version() if result.candidate.by == "open_clip" else None,
                "python": platform.python_version(),
                "date": date,
            }
        )
    return found


def _setting(options: argparse.Namespace) -> Setting:
    """The options as a setting that this machine can be asked for."""
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
    """Patchword's own row, with which the others of the same name are compared."""
    return next(r for r in results if r.candidate.name == result.candidate.name)


def _ratios(result: Result, results: list[Result]) -> tuple[float | None, float | None]:
    """The time and the memory of the first row of the same name over this row's, where both are known."""
    own = _first(result, results)
    if not own.total or not result.total:
        return None, None
    return own.seconds / result.seconds, own.peak / result.peak if own.peak and result.peak else None


def _torch_version() -> str:
    import torch

    return str(torch.__version__)


def _open_clip_version() -> str:
    from importlib.metadata import version

    return version("open_clip_torch")
