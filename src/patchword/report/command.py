"""The options of `patchword report`, and the files that it writes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from patchword.commands.options import Parser

if TYPE_CHECKING:
    from patchword.report.content import Report

EPILOG = """\
The report uses every results.json below RUNS; `patchword test` and `patchword compare` write these files. Runs that
differ only in their seed form one variant. Runs that measured different things raise an error that names the key that
differs. A difference gets an interval if both runs of a seed started from the same weights and saw the same data.

The report consists of report.html (one file that works offline), report.md, report.csv (every number of every run),
report_pairs.csv (the differences between any two variants), report.tex, and the plots as report_*.png.

  patchword report runs/compare
  patchword report runs/clip runs/sparc --baseline CLIP --out runs/first_look
"""


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = Parser(
        "report",
        description="Collect finished runs into tables, plots and a page.",
        epilog=EPILOG,
    )
    add = made.add_argument
    add("runs", nargs="+", type=Path, metavar="RUNS", help="folders of runs, or results.json files")
    add("--out", type=Path, metavar="DIR", help="the folder of the report (default: the first RUNS)")
    add("--baseline", metavar="NAME", help="the variant to compare the others with (default: the plan's)")
    add("--title", metavar="TEXT", help="the title of the report (default: the name of the comparison)")
    return made


def main(arguments: list[str]) -> None:
    """Read the runs, print the first tables, and write the report; `arguments` starts with `report`."""
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
    """Write all files of a report into an existing folder, and return the paths of the main four.

    Raises:
        UserError: If a file cannot be written.
    """
    from patchword.files.csv_cell import csv_cell
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
    write(folder / "report_pairs.csv", report.pairs.map(csv_cell).to_csv(index=False).encode())
    texts = {
        "report.html": page(report, found),
        "report.md": markdown(report, pictures),
        "report.csv": long_table(report.comparison).map(csv_cell).to_csv(index=False),
        "report.tex": latex(report),
    }
    for name, text in texts.items():
        write(folder / name, text.encode())
    return [folder / name for name in texts]
