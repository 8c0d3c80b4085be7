"""Write what `patchword bench` measured into the pages, under each line `<!-- measured -->`.

patchword bench --threads 2 --repeats 9 --csv loss.csv
patchword bench --threads 2 --pass interactions --batch 32 --csv interactions.csv
python docs/objectives/insert_costs.py loss.csv interactions.csv
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent
NAMES = {"patchword": "patchword", "plain": "the plain formula", "open_clip": "open_clip"}


def cost(row: pd.Series) -> str:
    """Time and memory as two cells."""
    return f"{digits(row.seconds * 1000)} ms | {digits(row.peak_bytes / 2**20)} MiB"


def digits(x: float) -> str:
    """Two digits, or all that are left of the point."""
    return f"{x:.0f}" if x >= 10 else f"{x:.1f}"


def source(rows: pd.DataFrame) -> str:
    """Where the numbers come from."""
    row = rows.iloc[0]
    sizes = (
        f"B = {row.batch}, P = {row.patches}, L = {row.tokens} (captions of {row.tokens // 4} to {row.tokens} tokens)"
    )
    what = "forward and backward of the loss" if row["pass"] == "train" else "forward"
    return (
        f"Measured: {what}, {sizes}, D = {row.dim}, {row['dtype']}, {row.threads} threads of an {row.device_name}, "
        f"torch {row.torch.partition('+')[0]}, median of {row.repeats}.\n"
    )


def loss_table(rows: pd.DataFrame) -> str:
    """An objective's rows."""
    lines = [source(rows), "| | time | peak memory |", "| --- | --- | --- |"]
    return "\n".join(lines + [f"| {NAMES[row.by]} | {cost(row)} |" for row in rows.itertuples()])


def every_loss(rows: pd.DataFrame) -> str:
    """Our rows of all objectives, beside what plain formulas take."""
    lines = [
        source(rows),
        "| | time | peak memory | plain formula: time | peak memory |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, found in rows.groupby("objective", sort=False):
        by = {row.by: cost(row) for row in found.itertuples()}
        lines.append(f"| {name} | {by['patchword']} | {by.get('plain', '- | -')} |")
    return "\n".join(lines)


def interaction_table(rows: pd.DataFrame) -> str:
    """Exact interactions beside sampled ones."""
    lines = [source(rows), "| interactions of all pairs | time | error |", "| --- | --- | --- |"]
    for row in rows.itertuples():
        error = "none" if pd.isna(row.error) else f"{row.error:.2g} of the exact values' standard deviation"
        lines.append(f"| {row.by} | {digits(row.seconds * 1000)} ms | {error} |")
    return "\n".join(lines)


def insert(page: Path, *tables: str) -> None:
    """Put the tables under the page's marks, in place of those that are there."""
    parts = re.split(r"(<!-- measured -->\n)(?:\n?(?:\||Measured: )[^\n]*\n)*", page.read_text())
    assert len(parts) == 2 * len(tables) + 1, f"{page} has {len(parts) // 2} marks for {len(tables)} tables"
    for position, table in enumerate(tables):
        parts[2 * position + 1] += f"\n{table}\n"
    page.write_text("".join(parts))


if __name__ == "__main__":
    losses, interactions = (pd.read_csv(path) for path in sys.argv[1:])
    insert(HERE / "README.md", every_loss(losses))
    for name, rows in losses.groupby("objective"):
        more = [interaction_table(interactions)] if name == "LOUPE" else []
        insert(HERE / f"{name.lower()}.md", loss_table(rows), *more)
