"""The report as Markdown, which links to the plots in the same folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from urllib.parse import quote

from patchword.files.markdown_text import escape
from patchword.report import pairs
from patchword.report.content import Report
from patchword.report.provenance import provenance
from patchword.report.run import NOT_RECORDED
from patchword.report.tables import Cell, Table


def markdown(report: Report, pictures: Sequence[tuple[str, str]]) -> str:
    """Return the text of `report.md`; `pictures` has the title and the file name of each picture of the gallery."""
    comparison = report.comparison
    parts = [f"# {escape(report.title)}", *(f"> {escape(claim)}" for claim in comparison.claims)]
    parts += [escape(report.warning), *map(escape, report.notes)]
    for split, tables in report.splits.items():
        parts.append(f"## Results: {escape(split)}")
        if report.verdicts.get(split):
            verdicts = pairs.table(report.verdicts[split])
            looks = sum(len(verdict.differences) for verdict in report.verdicts[split])
            parts += [
                "### Verdicts",
                _rows(verdicts[0], [list(verdict.values()) for verdict in verdicts]),
                f"Differences from the best variant over paired seeds with 95 % intervals, which are not corrected: "
                f"{looks:,} comparisons.",
            ]
        for table in tables[:1]:
            parts += [f"### {escape(table.title)}", *_table(table)]
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
        parts.append("## Gallery")
        parts += [f"![{escape(title)}]({quote(file)})" for title, file in pictures]
    parts += ["## What was measured", *(f"- {escape(k)}: {escape(v)}" for k, v in report.measured.items())]
    names = list(dict.fromkeys(name for row in report.counts for name in row))
    parts.append(_rows(names, [[row.get(name, "") for name in names] for row in report.counts]))
    found = provenance(comparison)
    parts += ["## Where the numbers come from", _rows(found.columns, found.rows)]
    parts += [f"- {key}: {escape(value)}" for key, value in found.legend.items() if NOT_RECORDED not in value]
    return _join(parts)


def _table(table: Table) -> list[str]:
    heads = [f"{column.title} {column.subtitle}".strip() for column in table.columns]
    head = ["variant", "seeds", *map(escape, heads)]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for row in table.rows:
        name = f"{escape(row.name)} (baseline)" if row.is_baseline else escape(row.name)
        lines.append([name, str(row.count), *map(_cell, row.cells)])
    lines += [[f"*{row.name}*", "", *map(_cell, row.cells)] for row in table.references]
    return [_lines(lines), *map(escape, table.notes)]


def _cell(cell: Cell) -> str:
    below = " ".join(part for part in (cell.difference, cell.interval, cell.mark) if part)
    value = f"**{escape(cell.value)}**" if cell.best else escape(cell.value)
    return f"{value} {escape(cell.spread)}".strip() + (f"<br>{escape(below)}" if below else "")


def _rows(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    heads = list(map(escape, columns))
    return _lines([heads, ["---"] * len(heads), *(list(map(escape, row)) for row in rows)])


def _lines(rows: Iterable[Iterable[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _join(parts: Sequence[str]) -> str:
    """Join the parts with an empty line between them, except between the items of a list."""
    text = parts[0]
    for before, part in pairwise(parts):
        text += ("\n" if before.startswith("- ") and part.startswith("- ") else "\n\n") + part
    return text + "\n"
