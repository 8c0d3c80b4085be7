"""Copy the parts of a comparison that its report needs: results, learning curves, and the maps of the first seed.

    python benchmarks/record.py runs/compare docs/benchmark/runs
    python benchmarks/record.py runs/natural docs/benchmark/natural --without-maps

The copy is small enough for a repository. `patchword report docs/benchmark/runs` writes the same report from it.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from pathlib import Path

DIGITS = 6  # significant digits of numbers


def main() -> None:
    """Copy a comparison from one folder to another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="the folder of the comparison")
    parser.add_argument("record", type=Path, help="the folder of the copy; it is replaced")
    parser.add_argument("--without-maps", action="store_true", help="leave out the maps, which contain the images")
    options = parser.parse_args()
    results = sorted(options.runs.glob("*/seed_*/test/results.json"))
    if not results:
        parser.error(f"{options.runs} holds no finished runs (VARIANT/seed_N/test/results.json)")
    shutil.rmtree(options.record, ignore_errors=True)
    options.record.mkdir(parents=True)
    shutil.copy(options.runs / "compare.yaml", options.record)
    first = min(path.parents[1].name for path in results)
    for path in results:
        run = path.parents[1]
        kept = options.record / run.relative_to(options.runs)
        record_results(path, kept / "test/results.json")
        record_curves(run / "fit/metrics.csv", kept / "fit/metrics.csv")
        if run.name == first and not options.without_maps:
            for maps in run.glob("test/maps/test_*.npz"):
                (kept / "test/maps").mkdir(exist_ok=True)
                shutil.copy(maps, kept / "test/maps")


def record_results(source: Path, target: Path) -> None:
    """Copy results with fewer digits and without white space."""
    target.parent.mkdir(parents=True)
    content = json.loads(source.read_text(), parse_float=lambda text: float(f"{float(text):.{DIGITS}g}"))
    target.write_text(json.dumps(content) + "\n")


def record_curves(source: Path, target: Path) -> None:
    """Copy the rows of validations, without the rows of single steps; write nothing if there are no validations."""
    with source.open(newline="") as file:
        rows = [
            row for row in csv.DictReader(file) if any(value for name, value in row.items() if name.startswith("val/"))
        ]
    if not rows:
        return
    target.parent.mkdir(parents=True)
    columns = [name for name in rows[0] if rows[0][name]]
    with target.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _short(row[name]) for name in columns} for row in rows)


def _short(text: str) -> str:
    return text if text.isdigit() else f"{float(text):.{DIGITS}g}"


if __name__ == "__main__":
    main()
