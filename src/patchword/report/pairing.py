"""A check that two runs with the same seed differ only in their variant."""

from __future__ import annotations

from collections.abc import Sequence

from patchword.report.run import Run

_SAME = {"encoder_at_start": "initial encoder", "data_order": "order of the data"}


def why_not_paired(runs: Sequence[Run], baseline: Sequence[Run]) -> str:
    """Return the reason why the runs of two variants are not paired; empty if they are.

    Two runs with the same seed are a pair if their encoders started from the same weights and they saw the same data in
    the same order. The checksums of both must be recorded and equal.
    """
    others = {run.seed: run for run in baseline if run.seed is not None}
    common = [(run, others[run.seed]) for run in runs if run.seed in others]
    if not common:
        return "not paired (no common seed)"
    every = [each for pair in common for each in pair]
    missing = [words for key, words in _SAME.items() if not all(each.trained.get(key) for each in every)]
    if missing:
        return f"not paired ({' and '.join(missing)} not recorded)"
    for key, words in _SAME.items():
        for run, other in common:
            if run.trained[key] != other.trained[key]:
                return f"not paired ({words} differs for seed {run.seed})"
    return ""
