"""The report as one HTML file that works offline."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from patchword.report import pairs
from patchword.report.content import Report
from patchword.report.frames import TRAINING
from patchword.report.gallery import Sample
from patchword.report.names import Column
from patchword.report.provenance import provenance
from patchword.report.statistics import signed
from patchword.report.tables import Cell, Table
from patchword.version import __version__
from patchword.viewer.content_policy import content_policy

_WIDTH = 88.0  # width of a drawn interval in pixels


def page(report: Report, samples: Sequence[Sample]) -> str:
    """Return the text of `report.html`; `samples` are those of the gallery."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    from patchword.viewer import AlignmentViewer
    from patchword.viewer.page import viewer_script

    folder = files("patchword.report")
    script = (folder / "page.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "data_uri": _data_uri,
        "intervals": intervals,
        "details": details,
        "verdict_rows": pairs.table,
    }
    return environment.get_template("page.html").render(
        report=report,
        comparison=report.comparison,
        provenance=provenance(report.comparison),
        numbers=_numbers(report),
        matrices=matrices(report),
        viewers=[(sample, AlignmentViewer(sample.panels).fragment()) for sample in samples],
        style=(folder / "page.css").read_text(encoding="utf-8"),
        script=script,
        policy=content_policy(script, viewer_script()),
        version=__version__,
    )


def intervals(table: Table) -> list[list[dict[str, float] | None]]:
    """Return where to draw each interval, by row and column; a column has one scale, with 0 in the middle."""
    columns = zip(*(row.cells for row in table.rows), strict=True)
    drawn = [[_interval(cell, reach) for cell in cells] for cells in columns for reach in [_reach(cells)]]
    return [list(row) for row in zip(*drawn, strict=True)]


def details(cell: Cell) -> str:
    """Return one line per seed with its number and config hash."""
    return "\n".join(f"seed {seed}: {value} (config {config})" for seed, value, config in cell.seeds)


def matrices(report: Report) -> dict[str, list[tuple[str, list[list[dict[str, str]]]]]]:
    """Return the differences between any two variants, by split: the title of a metric, and a row for each variant.

    A cell has the difference of the row's variant from the column's, its paired interval, and Welch's interval. A cell
    on the diagonal is empty.
    """
    variants, found = report.comparison.variants, report.pairs.to_dict("records")
    by_pair = {(row["split"], row["metric"], row["variant"], row["other"]): row for row in found}
    return {
        split: [
            (
                pairs.in_words(verdict)["metric"],
                [[_between(by_pair, split, verdict.column, one, other) for other in variants] for one in variants],
            )
            for verdict in verdicts
        ]
        for split, verdicts in report.verdicts.items()
    }


def _between(
    by_pair: dict[tuple[str, str, str, str], dict[str, Any]], split: str, column: Column, one: str, other: str
) -> dict[str, str]:
    row, sign = by_pair.get((split, column.metric, one, other)), 1
    if row is None:
        row, sign = by_pair.get((split, column.metric, other, one)), -1
    if row is None:
        return {}
    paired, welch = (
        sorted(sign * row[name] for name in names) for names in (("low", "high"), ("welch_low", "welch_high"))
    )
    excludes_zero = paired[0] > 0 or paired[1] < 0
    return {
        "difference": signed(sign * row["difference"]),
        "paired": f"[{signed(paired[0])}, {signed(paired[1])}]" if paired[0] == paired[0] else "",
        "welch": f"[{signed(welch[0])}, {signed(welch[1])}]" if welch[0] == welch[0] else "",
        "sign": "" if not excludes_zero else "better" if (paired[0] > 0) != column.lower_is_better else "worse",
    }


def _reach(cells: Sequence[Cell]) -> float:
    """Return the largest absolute bound of the intervals."""
    return max((abs(bound) for cell in cells for bound in cell.bounds or ()), default=0.0) or 1.0


def _interval(cell: Cell, reach: float) -> dict[str, float] | None:
    if cell.bounds is None:
        return None
    middle, low, high = (round(_WIDTH / 2 * (1 + 0.94 * bound / reach), 1) for bound in cell.bounds)
    return {"width": _WIDTH, "zero": _WIDTH / 2, "middle": middle, "low": low, "high": high}


def _numbers(report: Report) -> dict[str, list[dict[str, Any]]]:
    """Return every metric by split, formatted for the page."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in report.summary.to_dict("records"):
        shown = {"variant": row["variant"], "metric": row["metric"], "count": row["count"], "order": row["mean"]}
        shown |= {name: f"{row[name]:.4g}" if row[name] == row[name] else "" for name in ("mean", "sd")}
        shown["difference"] = signed(row["difference"]) if row["difference"] == row["difference"] else ""
        shown["interval"] = f"[{signed(row['low'])}, {signed(row['high'])}]" if row["low"] == row["low"] else ""
        if row["split"] == TRAINING:
            shown |= {"difference": "", "interval": ""}  # Costs have various units; the cost table shows their ratios.
        found.setdefault(row["split"], []).append(shown)
    return found


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
