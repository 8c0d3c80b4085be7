"""The plan that `patchword compare` leaves in its folder: what the comparison is called, claims and compares with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from patchword.errors import InputError
from patchword.report.run import as_dict

PLAN = "compare.yaml"


@dataclass(frozen=True)
class Plan:
    """A folder of `<variant>/seed_<s>`.

    Attributes:
        folder: The folder.
        name: What the comparison is called.
        claim: The sentence that it tests, if it says one.
        baseline: The variant that the others are compared with, if it names one.
        variants: The names of the variants, in order.
        seeds: The seeds of each variant.
    """

    folder: Path
    name: str
    claim: str | None
    baseline: str | None
    variants: tuple[str, ...]
    seeds: tuple[int, ...]


def read_plan(path: Path) -> Plan:
    """The plan of a `compare.yaml`.

    Raises:
        InputError: If the file is not YAML, or no plan.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} is no plan of a comparison: it must have keys such as name and variants")
    seeds = found.get("seeds")
    return Plan(
        folder=path.parent,
        name=str(found.get("name") or path.parent.name),
        claim=None if found.get("claim") is None else str(found["claim"]),
        baseline=None if found.get("baseline") is None else str(found["baseline"]),
        variants=tuple(map(str, as_dict(found.get("variants")))),
        seeds=tuple(seed for seed in seeds if isinstance(seed, int)) if isinstance(seeds, list) else (),
    )
