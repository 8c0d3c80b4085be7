"""A comparison: the runs that are reported together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from patchword.report.run import Run, as_dict


@dataclass(frozen=True)
class Unfinished:
    """A run that was planned or started but has no results; `state` says in words how far it got or why it failed."""

    variant: str
    seed: int
    folder: Path
    state: str


@dataclass(frozen=True)
class Comparison:
    """Runs that measured the same thing, by variant and seed.

    Attributes:
        name: The name of the comparison.
        claims: The claims that the plans state; empty if they state none.
        baseline: The variant that the others are compared with; None if no differences are computed.
        variants: The variants that have runs, in the order of the plan, then in alphabetical order.
        runs: The runs, sorted by variant and seed.
        unfinished: The runs in the same folders that have no results.
        notes: Notes for the reader about which runs were used.
    """

    name: str
    claims: tuple[str, ...]
    baseline: str | None
    variants: tuple[str, ...]
    runs: tuple[Run, ...]
    unfinished: tuple[Unfinished, ...] = ()
    notes: tuple[str, ...] = ()

    def of(self, variant: str) -> list[Run]:
        """Return the runs of one variant."""
        return [run for run in self.runs if run.variant == variant]

    def definitions(self, split: str) -> dict[str, str]:
        """Return the definitions of a suite's numbers by name; empty if the split is not an evaluation suite."""
        suites = as_dict(as_dict(self.runs[0].measured.get("definition")).get("suites"))
        return as_dict(as_dict(suites.get(split)).get("definitions"))

    @property
    def query(self) -> str:
        """The words of a phrase that the maps are computed for: `content`, `span` or `alone`."""
        return next((run.query for run in self.runs if run.query), "content")
