"""A comparison: the runs that are reported together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from patchword.report.run import Run, as_dict


@dataclass(frozen=True)
class Unfinished:
    """A run that was planned or started and has no results.

    Attributes:
        variant: Its variant.
        seed: Its seed.
        folder: Where its results would be.
        state: What is there, in words.
    """

    variant: str
    seed: int
    folder: Path
    state: str


@dataclass(frozen=True)
class Comparison:
    """Runs that measured the same thing, by variant and seed.

    Attributes:
        name: What it is called.
        claims: The sentences that it tests, if its plan says any.
        baseline: The variant that the others are compared with; None for no differences.
        variants: The variants that have runs, in the order of the plan or of their names.
        runs: The runs, by variant and seed.
        unfinished: The runs of its folder that have no results.
        notes: What a reader must know about the choice of runs.
    """

    name: str
    claims: tuple[str, ...]
    baseline: str | None
    variants: tuple[str, ...]
    runs: tuple[Run, ...]
    unfinished: tuple[Unfinished, ...] = ()
    notes: tuple[str, ...] = ()

    def of(self, variant: str) -> list[Run]:
        """The runs of one variant."""
        return [run for run in self.runs if run.variant == variant]

    def definitions(self, split: str) -> dict[str, str]:
        """What an evaluation suite says about its numbers, by their names; empty for a split that is no suite."""
        suites = as_dict(as_dict(self.runs[0].measured.get("definition")).get("suites"))
        return as_dict(as_dict(suites.get(split)).get("definitions"))

    @property
    def query(self) -> str:
        """Which words of a phrase were looked for in the image."""
        return next((run.query for run in self.runs if run.query), "content")
