"""Reports of finished runs: what they measured, over seeds and against a baseline.

In a notebook:

    from patchword.report import read_runs, summary

    comparison = read_runs("runs/compare", baseline="CLIP")
    summary(comparison)

`long_table` has one row for each number of each run.
"""

from patchword.report.comparison import Comparison, Unfinished
from patchword.report.frames import long_table, summary
from patchword.report.reading import read_runs
from patchword.report.run import Run

__all__ = ["Comparison", "Run", "Unfinished", "long_table", "read_runs", "summary"]
