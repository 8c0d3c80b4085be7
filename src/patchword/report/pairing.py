"""Whether two runs of a seed differ by their variant alone."""

from __future__ import annotations

from collections.abc import Sequence

from patchword.report.run import Run

_SAME = {"encoder_at_start": "initial encoder", "data_order": "order of the data"}


def why_not_paired(runs: Sequence[Run], baseline: Sequence[Run]) -> str:
    """Why the runs of two variants are not pairs; empty if they are.

    Runs of one seed are a pair if they started from the same weights of the encoder and saw the same data in the same
    order: both must be recorded, and equal.
    """
    others = {run.seed: run for run in baseline if run.seed is not None}
    common = [(run, others[run.seed]) for run in runs if run.seed in others]
    if not common:
        return "not paired (no common seed)"
    missing = [
        words for key, words in _SAME.items() if any(not each.trained.get(key) for pair in common for each in pair)
    ]
    if missing:
        return f"not paired ({' and '.join(missing)} not recorded)"
    for key, words in _SAME.items():
        for run, other in common:
            if run.trained[key] != other.trained[key]:
                return f"not paired ({words} differs for seed {run.seed})"
    return ""
