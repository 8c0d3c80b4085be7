"""The first tables of the report, printed on the terminal."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rich import markup
from rich.box import SIMPLE_HEAD
from rich.console import Console

from patchword.files.printable import printable
from patchword.report.content import Report
from patchword.report.pairs import in_words
from patchword.report.tables import BETTER, WORSE, Cell, Table

if TYPE_CHECKING:
    from rich.table import Table as RichTable

_ZERO = re.compile(r"(?<!\d)0\.")
_COLORS = {BETTER: "green", WORSE: "red"}
_NUMBER = 10  # width of a cell such as 0.123±.004; long names are wrapped before numbers are cut


def escape(text: str) -> str:
    """Escape text for rich, and remove control characters."""
    return markup.escape("\n".join(printable(line, 2000) for line in text.split("\n")))


def show(report: Report, console: Console) -> None:
    """Print the first table and the verdicts of the first split, the cost table, and the notes."""
    split, tables = next(iter(report.splits.items()))
    console.print(f"[bold]{escape(report.title)}[/]", soft_wrap=True)
    for claim in report.comparison.claims:
        console.print(f"[italic]{escape(claim)}[/]", soft_wrap=True)
    for table in [*tables[:1], *([report.cost] if report.cost else [])]:
        words = table.title if table is report.cost else f"{table.title}: {split}"
        console.print(_table(table, words))
        for note in table.notes:
            console.print(f"[dim]{escape(note)}[/]", highlight=False)
        console.print()
    for verdict in report.verdicts.get(split, []):
        metric, best, *rest = in_words(verdict).items()
        console.print(f"[bold]{escape(metric[1])}[/]: {escape(best[1])} is best", highlight=False)
        for name, text in rest:
            if text:
                console.print(f"  {name}: {escape(text)}", highlight=False)
    console.print()
    for note in [report.warning, *report.notes]:
        console.print(escape(note), highlight=False)
    for state, runs in _unfinished(report).items():
        console.print(f"[yellow]not in the tables:[/] {escape(', '.join(runs))}: {escape(state)}", highlight=False)


def _unfinished(report: Report) -> dict[str, list[str]]:
    """Return the unfinished variants and their seeds, grouped by state."""
    found: dict[str, dict[str, list[str]]] = {}
    for run in report.comparison.unfinished:
        found.setdefault(run.state, {}).setdefault(run.variant, []).append(str(run.seed))
    return {
        state: [f"{variant} (seed {' '.join(seeds)})" for variant, seeds in variants.items()]
        for state, variants in found.items()
    }


def _table(table: Table, title: str) -> RichTable:
    from rich.table import Table as RichTable

    made = RichTable(title=escape(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=0)
    made.add_column("\nvariant", overflow="fold")
    made.add_column("\nn", justify="right")
    for column in table.columns:
        made.add_column(escape(f"{column.title}\n{column.subtitle}".strip()), justify="right", min_width=_NUMBER)
    for row in table.rows:
        name = f"{escape(row.name)}\n[dim]baseline[/]" if row.is_baseline else escape(row.name)
        made.add_row(name, str(row.count), *map(_cell, row.cells))
    for row in table.references:
        made.add_row(row.name, "", *(cell.value for cell in row.cells), style="dim")
    return made


def _cell(cell: Cell) -> str:
    """Format the mean and its spread, with the difference and its interval on the next lines; the best is bold."""
    below = f"\n[{_COLORS.get(cell.mark, 'dim')}]{cell.difference}{cell.mark and ' ' + cell.mark}[/]"
    interval = f"\n[dim]{escape(_ZERO.sub('.', cell.interval).replace(', ', ' '))}[/]" if cell.interval else ""
    spread = cell.spread.replace("±0.", "±.")
    value = f"[bold]{escape(cell.value)}[/]" if cell.best else escape(cell.value)
    return f"{value}{spread}{below if cell.difference else ''}{interval}"
