"""The plan that `patchword compare` writes to its folder: name, claim, baseline, variants and seeds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from patchword.errors import UserError
from patchword.files.yaml_file import read_yaml
from patchword.report.run import as_dict

PLAN = "compare.yaml"


@dataclass(frozen=True)
class Plan:
    """The plan of a comparison whose runs are in the folders `<variant>/seed_<s>` of its folder.

    The claim and the baseline are None if the plan has none.
    """

    folder: Path
    name: str
    claim: str | None
    baseline: str | None
    variants: tuple[str, ...]
    seeds: tuple[int, ...]


def read_plan(path: Path) -> Plan:
    """Read the plan in a `compare.yaml`.

    Raises:
        UserError: If the file is not YAML or does not contain a plan.
    """
    found = read_yaml(path)
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a plan of a comparison: it must have keys such as name and variants")
    seeds = found.get("seeds")
    return Plan(
        folder=path.parent,
        name=str(found.get("name") or path.parent.name),
        claim=None if found.get("claim") is None else str(found["claim"]),
        baseline=None if found.get("baseline") is None else str(found["baseline"]),
        variants=tuple(map(str, as_dict(found.get("variants")))),
        seeds=tuple(seed for seed in seeds if isinstance(seed, int)) if isinstance(seeds, list) else (),
    )
