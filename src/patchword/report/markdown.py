"""The report as Markdown, with its plots beside it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

from patchword.report.content import Report
from patchword.report.provenance import provenance
from patchword.report.run import NOT_RECORDED
from patchword.report.tables import Cell, Table

_SPECIAL = re.compile(r"([\\`*_{}\[\]#|~$!])")


def escape(text: str) -> str:
    """Text that says nothing to Markdown, in one line."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", text)


def markdown(report: Report, pictures: Sequence[tuple[str, str]]) -> str:
    """The text of `report.md`.

    Args:
        report: What it says.
        pictures: Title and file of each picture of the gallery.
    """
    comparison = report.comparison
    parts = [f"# {escape(report.title)}", *(f"> {escape(claim)}" for claim in comparison.claims)]
    parts += [escape(report.warning), *map(escape, report.notes)]
    for split, tables in report.splits.items():
        parts.append(f"## Results: {escape(split)}")
        parts += [f"### {escape(tables[0].title)}", *_table(tables[0])]
        for table in tables[1:]:
            parts += [f"<details><summary>{escape(table.title)}</summary>", *_table(table), "</details>"]
    if report.cost is not None:
        parts += ["## Cost", *_table(report.cost)]
    if comparison.unfinished:
        rows = [(run.variant, str(run.seed), run.state) for run in comparison.unfinished]
        parts += ["## Not in the tables", _rows(("variant", "seed", "state"), rows)]
    parts += [
        part
        for plot in report.plots
        for part in (f"## {escape(plot.title)}", f"![{escape(plot.title)}](report_{plot.name}.png)")
    ]
    if pictures:
        parts.append("## The same images and phrases")
        parts += [f"![{escape(title)}]({file})" for title, file in pictures]
    parts += ["## What was measured", *(f"- {escape(k)}: {escape(v)}" for k, v in report.measured.items())]
    names = list(dict.fromkeys(name for row in report.counts for name in row))
    parts.append(_rows(names, [[row.get(name, "") for name in names] for row in report.counts]))
    found = provenance(comparison)
    parts += ["## Where the numbers come from", _rows(found.columns, found.rows)]
    parts += [f"- {key}: {escape(value)}" for key, value in found.legend.items() if NOT_RECORDED not in value]
    return _join(parts)


def _table(table: Table) -> list[str]:
    heads = [f"{column.title} {column.subtitle}".strip() for column in table.columns]
    rows = [[*_name(row.name, row.is_baseline), str(row.count), *map(_cell, row.cells)] for row in table.rows]
    rows += [[f"*{row.name}*", "", *map(_cell, row.cells)] for row in table.references]
    head = ["variant", "seeds", *map(escape, heads)]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return ["\n".join(f"| {' | '.join(line)} |" for line in lines), *map(escape, table.notes)]


def _name(name: str, is_baseline: bool) -> list[str]:
    return [f"**{escape(name)}**" if is_baseline else escape(name)]


def _cell(cell: Cell) -> str:
    below = " ".join(part for part in (cell.difference, cell.interval, cell.mark) if part)
    return escape(f"{cell.value} {cell.spread}".strip()) + (f"<br>{escape(below)}" if below else "")


def _rows(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    heads = list(map(escape, columns))
    lines = [heads, ["---"] * len(heads), *(list(map(escape, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _join(parts: Sequence[str]) -> str:
    """An empty line between parts, but not between the items of a list."""
    text = parts[0]
    for before, part in pairwise(parts):
        text += ("\n" if before.startswith("- ") and part.startswith("- ") else "\n\n") + part
    return text + "\n"
