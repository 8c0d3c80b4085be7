"""The plan of a comparison: a YAML file that defines variants and seeds."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from patchword.errors import UserError
from patchword.files.atomic_write import atomic_write
from patchword.files.yaml_file import read_yaml

Settings = dict[str, Any]  # values by configuration key with dots, such as model.objective.threshold


@dataclass
class Plan:
    """The variants and the seeds of a comparison.

    Attributes:
        name: The name of the comparison and of its folder in `runs`.
        claim: The claim or question that the comparison tests, in one sentence.
        variants: The settings of each variant by name, which is also the name of its folder. The key `config` holds
            the configuration files of the variant, in the order in which they are merged.
        config: Configuration files that come first in all variants.
        grid: Lists of values by configuration key. Every variant is repeated for all combinations.
        seeds: The seeds of each variant.
        baseline: The variant that the others are compared with.
    """

    name: str
    claim: str
    variants: dict[str, Settings] = field(default_factory=lambda: {"": {}})
    config: list[str] = field(default_factory=list)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    baseline: str | None = None

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Read the plan in a file, and expand its grid into variants.

        Raises:
            UserError: If the file is not a plan; the message names the file and the key.
        """
        content = read_yaml(path)
        try:
            plan = cls(**_checked(content, list(cls.__dataclass_fields__)))
            plan.variants, plan.grid = _multiplied(plan.variants, plan.grid), {}
            if plan.baseline is not None and plan.baseline not in plan.variants:
                raise UserError(f"the baseline '{plan.baseline}' is not one of the variants {', '.join(plan.variants)}")
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        return plan

    def write(self, path: Path) -> None:
        """Write the plan to a file."""
        with atomic_write(path) as file:
            file.write(yaml.safe_dump(asdict(self), sort_keys=False, allow_unicode=True))

    def arguments(self, variant: str, seed: int) -> list[str]:
        """Return the arguments of `fit` and `test` for one run, without its folder."""
        own = self.variants[variant]
        settings = {key: value for key, value in own.items() if key != "config"} | {"seed_everything": seed}
        files = [word for file in [*self.config, *own.get("config", [])] for word in ("--config", file)]
        return [*files, *(word for key, value in settings.items() for word in (f"--{key}", as_argument(value)))]


def _checked(content: Any, keys: list[str]) -> dict[str, Any]:
    """Check the content of a plan, and turn single files into lists.

    Raises:
        UserError: If the content is not a plan.
    """
    if not isinstance(content, dict):
        raise UserError("not a plan: it must have the keys name, claim and variants or grid")
    if unknown := [key for key in content if key not in keys]:
        kind = "this file configures one run" if "model" in unknown else f"unknown key '{unknown[0]}'"
        raise UserError(f"{kind}; a plan of compare has the keys {', '.join(keys)}")
    plan: dict[str, Any] = {"variants": {"": {}}, "config": [], "grid": {}, "seeds": [0, 1, 2], "baseline": None}
    plan |= content
    plan["config"] = _as_list(plan["config"])
    shapes = (
        ("name", isinstance(plan.get("name"), str) and folder_name(plan["name"]) == plan["name"], "a folder name"),
        ("claim", isinstance(plan.get("claim"), str) and plan["claim"], "a sentence that states what is tested"),
        ("seeds", plan["seeds"] and _is_list(plan["seeds"], int), "a list of whole numbers, such as [0, 1, 2]"),
        ("config", _is_list(plan["config"], str), "a file or a list of files"),
        ("variants", isinstance(plan["variants"], dict) and plan["variants"], "a mapping of names to settings"),
        ("grid", isinstance(plan["grid"], dict), "a mapping of configuration keys to lists of values"),
        ("baseline", isinstance(plan["baseline"], str | None), "the name of a variant"),
    )
    for key, right, wanted in shapes:
        if not right:
            raise UserError(f"'{key}' must be {wanted}, not {plan.get(key)!r}")
    for key, values in plan["grid"].items():
        if not isinstance(values, list) or not values:
            raise UserError(f"grid: '{key}' must have a list of values, not {values!r}")
    plan["variants"] = {str(name): _settings(name, own) for name, own in plan["variants"].items()}
    if "" in plan["variants"] and not (plan["grid"] and plan["config"]):
        raise UserError("the plan must have 'variants', or a 'grid' and the 'config' that it varies")
    return plan


def _settings(name: Any, own: Any) -> Settings:
    """Check the settings of a variant."""
    if name != "" and folder_name(name) != str(name):
        raise UserError(f"the variant '{name}' must have a valid folder name, such as '{folder_name(name)}'")
    own = {} if own is None else own
    if not isinstance(own, dict) or not all(isinstance(key, str) for key in own):
        raise UserError(f"the variant '{name}' must be a mapping of configuration keys to values, not {own!r}")
    files = _as_list(own.get("config", []))
    if not _is_list(files, str):
        raise UserError(f"the variant '{name}': 'config' must be a file or a list of files, not {files!r}")
    return own | ({"config": files} if files else {})


def _multiplied(variants: dict[str, Settings], grid: dict[str, list[Any]]) -> dict[str, Settings]:
    """Return each variant with every combination of the grid's values."""
    multiplied: dict[str, Settings] = {}
    for name, settings in variants.items():
        for values in itertools.product(*grid.values()):
            varied = dict(zip(grid, values, strict=True))
            parts = [name] * bool(name) + [f"{k.rpartition('.')[2]}={as_argument(v)}" for k, v in varied.items()]
            variant = folder_name(", ".join(parts)) if varied else name
            if variant in multiplied:
                raise UserError(f"two variants would have the same folder '{variant}'")
            multiplied[variant] = settings | varied
    return multiplied


def folder_name(name: str) -> str:
    """Replace the characters of `name` that a folder name should not have."""
    return re.sub(r"[^\w.,+=() -]", "_", str(name)).strip(" .") or "_"


def as_argument(value: Any) -> str:
    """Return a value as it is typed on the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(v, kind) and not isinstance(v, bool) for v in value)
