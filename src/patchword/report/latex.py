"""The report's tables as LaTeX."""

from __future__ import annotations

from patchword.files.printable import printable
from patchword.report.content import Report
from patchword.report.tables import Cell, Table

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "→": r"$\to$",
    "▲": r"$^{\blacktriangle}$",
    "▼": r"$^{\blacktriangledown}$",
    "•": r"$^{\bullet}$",
    "†": r"$^{\dagger}$",
    "‡": r"$^{\ddagger}$",
}


def escape(text: str) -> str:
    """Escape text for LaTeX, and put it on one line."""
    return "".join(_SPECIAL.get(letter, letter) for letter in _comment(text))


def latex(report: Report) -> str:
    """Return the text of `report.tex`, which has one `table` environment per table, to be copied into a paper.

    The difference from the baseline and its interval are below each mean.
    """
    hashes = ", ".join(dict.fromkeys(run.provenance["config_hash"] for run in report.comparison.runs))
    parts = [
        "% Needs \\usepackage{amssymb,booktabs}.",
        f"% {_comment(report.title)}",
        f"% Config hashes: {_comment(hashes)}",
    ]
    parts += [f"% {_comment(note)}" for note in (report.warning, *report.notes)]
    for split, tables in report.splits.items():
        parts += [_table(table, f"{table.title}, split {split}.") for table in tables]
    if report.cost is not None:
        parts.append(_table(report.cost, "Cost of training."))
    return "\n".join(parts) + "\n"


def _comment(text: str) -> str:
    return printable(" ".join(text.split()), 10_000)


def _table(table: Table, caption: str) -> str:
    lines = []
    for row in table.rows:
        name = escape(f"{row.name} (baseline)" if row.is_baseline else row.name)
        lines.append([name, *map(_mean, row.cells)])
        for below in ([_difference(cell) for cell in row.cells], [_small(cell.interval) for cell in row.cells]):
            if any(below):
                lines.append(["", *below])
    references = [[escape(row.name), *(escape(cell.value) for cell in row.cells)] for row in table.references]
    words = escape(" ".join([caption, *table.notes]))
    heads = [["", *(escape(column.title) for column in table.columns)]]
    heads.append(["", *(escape(column.subtitle) for column in table.columns)])
    rule = [r"\midrule", *map(_line, references)] if references else []
    return "\n".join(
        [
            "",
            r"\begin{table}",
            r"\centering\small\setlength{\tabcolsep}{4pt}",
            rf"\caption{{{words}}}",
            rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
            r"\toprule",
            *map(_line, heads),
            r"\midrule",
            *map(_line, lines),
            *rule,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def _mean(cell: Cell) -> str:
    value = rf"\textbf{{{escape(cell.value)}}}" if cell.best else escape(cell.value)
    return f"{value} {escape(cell.spread)}".strip()


def _difference(cell: Cell) -> str:
    return _small(cell.difference + cell.mark) if cell.difference else ""


def _small(text: str) -> str:
    # The braces prevent LaTeX from reading a bracket at the start of a line as the option of `\\`.
    return rf"{{\scriptsize {escape(text)}}}" if text else ""
