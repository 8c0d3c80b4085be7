"""The options of `patchword report`, and what it writes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from patchword.commands import Parser

if TYPE_CHECKING:
    from patchword.report.content import Report

EPILOG = """\
Runs are the folders that `patchword test` and `patchword compare` leave: every results.json below RUNS is found. Runs
that differ by their seed alone are one variant. Runs that measured different things are refused, with the key that
differs. A difference has an interval where both runs of a seed started from the same weights and saw the same data.

Written are report.html (one file, no network), report.md, report.csv (every number of every run), report.tex, and the
plots as report_*.png.

  patchword report runs/compare
  patchword report runs/clip runs/sparc --baseline CLIP --out runs/first_look
"""


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = Parser(
        "report",
        description="Gather finished runs into tables, plots and a page.",
        epilog=EPILOG,
    )
    add = made.add_argument
    add("runs", nargs="+", type=Path, metavar="RUNS", help="folders of runs, or files results.json")
    add("--out", type=Path, metavar="DIR", help="where the report is written (default: the first RUNS)")
    add("--baseline", metavar="NAME", help="the variant that others are compared with (default: the plan's)")
    add("--title", metavar="TEXT", help="of the report (default: the name of the comparison)")
    return made


def main(arguments: list[str]) -> None:
    """Read runs, print the first tables, write the report.

    Args:
        arguments: The command line from `report` on.
    """
    options = parser().parse_args(arguments[1:])

    from rich.console import Console

    from patchword.report.content import make
    from patchword.report.files import require_writable
    from patchword.report.reading import read_runs
    from patchword.report.terminal import show

    comparison = read_runs(*options.runs, baseline=options.baseline)
    first = options.runs[0]
    folder = options.out or (first.parent if first.is_file() else first)
    require_writable(folder)
    report = make(comparison, options.title)
    console = Console()
    show(report, console)
    for path in write_report(report, folder):
        console.print(f"written: {path}", soft_wrap=True, highlight=False, markup=False)


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write all files of a report into a folder that exists; returns the main four.

    Raises:
        InputError: If one cannot be written.
    """
    from patchword.report import gallery
    from patchword.report.files import write
    from patchword.report.frames import long_table
    from patchword.report.latex import latex
    from patchword.report.markdown import markdown
    from patchword.report.page import page
    from patchword.report.style import png

    for plot in report.plots:
        write(folder / f"report_{plot.name}.png", plot.png)
    found = gallery.samples(report.comparison)
    pictures = []
    for sample in found:
        for number, figure in enumerate(gallery.draw(sample), 1):
            name = f"report_gallery_{sample.name}_{number}.png"
            write(folder / name, png(figure, gallery.DPI))
            pictures.append((next(iter(sample.panels.values())).caption, name))
    texts = {
        "report.html": page(report, found),
        "report.md": markdown(report, pictures),
        "report.csv": long_table(report.comparison).to_csv(index=False),
        "report.tex": latex(report),
    }
    for name, text in texts.items():
        write(folder / name, text.encode())
    return [folder / name for name in texts]
