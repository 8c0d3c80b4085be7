"""The setup of all parts, and the rows of the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from patchword.commands.objective_names import OURS

TARGETS = {"SPARC": 1.01, "LOUPE": 1.05, "FILIP": 1.2, "GLoRIA": 1.5}  # largest time of a step; CLIP's is 1

Cases = Iterator[tuple[str, Callable[[], dict[str, Any]]]]


@dataclass(frozen=True)
class Setup:
    """What all parts need.

    Attributes:
        device: `cuda` or `cpu`.
        small: Whether models and batches are tiny, for a dry run.
        compile: Whether the towers of training steps are compiled.
    """

    device: str
    small: bool
    compile: bool

    @property
    def main_objectives(self) -> list[str]:
        """CLIP and the objectives that have a target; a dry run has one of them."""
        return ["CLIP", *TARGETS][: 2 if self.small else None]

    @property
    def other_objectives(self) -> list[str]:
        """All other objectives of patchword; none in a dry run."""
        return [] if self.small else [name for name in OURS if name not in self.main_objectives]


@dataclass(frozen=True)
class Row:
    """One row of the table; what was not measured is None.

    Attributes:
        part: The part of the benchmark.
        case: What was measured.
        seconds: The median time of a step or call.
        ratio: The median of its ratio to the step of the same turn with which it is compared.
        target: The largest ratio that we want.
        peak_bytes: The peak memory, without what existed before the step or call.
        images_per_second: Images, or image-text pairs, per second.
        mfu: The share of the GPU's arithmetic that the towers' forward and backward pass uses.
        loss_error: The relative difference of the loss or value from float64 on the CPU.
        gradient_error: The largest such difference of a gradient.
        note: Why there are no numbers, or how to read them.
    """

    part: str
    case: str
    seconds: float | None = None
    ratio: float | None = None
    target: float | None = None
    peak_bytes: int | None = None
    images_per_second: float | None = None
    mfu: float | None = None
    loss_error: float | None = None
    gradient_error: float | None = None
    note: str = ""


COLUMNS: dict[str, Callable[[Row], str]] = {
    "ms": lambda row: _number(row.seconds and 1e3 * row.seconds, ".1f"),
    "ratio": lambda row: _number(row.ratio, ".3f"),
    "target": lambda row: _number(row.target, ".2f"),
    "MiB": lambda row: _number(row.peak_bytes and row.peak_bytes / 2**20, ".0f"),
    "images/s": lambda row: _number(row.images_per_second, ".0f"),
    "MFU": lambda row: _number(row.mfu, ".3f"),
    "loss err": lambda row: _number(row.loss_error, ".0e"),
    "grad err": lambda row: _number(row.gradient_error, ".0e"),
}
HEADER = f"{'part':<15}{'case':<24}" + "".join(f"{name:>9}" for name in COLUMNS) + "  note"


def line(row: Row) -> str:
    """Return the row as a line of the table."""
    cells = "".join(f"{cell(row):>9}" for cell in COLUMNS.values())
    return f"{row.part:<15}{row.case:<24}{cells}  {row.note}".rstrip()


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
