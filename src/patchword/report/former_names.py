"""Renamed metrics, so that results recorded under the former names can be read."""

from __future__ import annotations

import re

_FORMER = (
    (re.compile(r"/centre/"), "/center_prior/"),
    (re.compile(r"(/(?:align|cosine|dot|center_prior|chance)/)choice"), r"\1object_choice"),
    (re.compile(r"(/(?:align|cosine|dot|center_prior|chance)/)(chance_)?pointing(?!_game)"), r"\1\2pointing_game"),
)


def present_name(metric: str) -> str:
    """Return the present name of a metric, with or without its split; names that did not change are returned as is."""
    for former, present in _FORMER:
        metric = former.sub(present, metric)
    return metric
