"""What is to be compared: a plan in a YAML file, and the runs that it means."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from patchword.errors import InputError

Settings = dict[str, Any]  # configuration keys with dots, such as model.objective.threshold


@dataclass
class Plan:
    """Variants times seeds.

    Attributes:
        name: The folder of the runs, below `runs`.
        claim: The question that the comparison answers, in a sentence.
        variants: For each name, which is also a folder's, what makes this variant: configuration keys, and under
            `config` the files it is made of, in the order in which they are merged.
        config: Files that all variants begin with.
        grid: Configuration keys with the values that each takes; every variant is repeated for all combinations.
        seeds: Each variant's seeds.
        baseline: The variant that others are compared with.
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
        """The plan in a file, its grid multiplied out.

        Raises:
            InputError: If it is not one; the message names the file and the key.
        """
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
        try:
            plan = cls(**_checked(content, list(cls.__dataclass_fields__)))
            plan.variants, plan.grid = _multiplied(plan.variants, plan.grid), {}
            if plan.baseline is not None and plan.baseline not in plan.variants:
                raise InputError(f"the baseline '{plan.baseline}' is no variant: {', '.join(plan.variants)}")
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        return plan

    def write(self, path: Path) -> None:
        """Keep the plan beside its runs."""
        path.write_text(yaml.safe_dump(asdict(self), sort_keys=False, allow_unicode=True), encoding="utf-8")

    def arguments(self, variant: str, seed: int) -> list[str]:
        """What an ordinary `fit` or `test` of this run is given, but for its folder."""
        own = self.variants[variant]
        settings = {key: value for key, value in own.items() if key != "config"} | {"seed_everything": seed}
        files = [word for file in [*self.config, *own.get("config", [])] for word in ("--config", file)]
        return [*files, *(word for key, value in settings.items() for word in (f"--{key}", as_argument(value)))]


def _checked(content: Any, keys: list[str]) -> dict[str, Any]:
    """What stands in the file, with lists where there may be one or several; InputError where it is no plan."""
    if not isinstance(content, dict):
        raise InputError("not a plan: it must have the keys name, claim and variants or grid")
    if unknown := [key for key in content if key not in keys]:
        kind = "this configures one run" if "model" in unknown else f"there is no key '{unknown[0]}'"
        raise InputError(f"{kind}; a plan of compare has the keys {', '.join(keys)}")
    plan: dict[str, Any] = {"variants": {"": {}}, "config": [], "grid": {}, "seeds": [0, 1, 2], "baseline": None}
    plan |= content
    plan["config"] = _as_list(plan["config"])
    shapes = (
        ("name", isinstance(plan.get("name"), str) and folder_name(plan["name"]) == plan["name"], "a folder's name"),
        ("claim", isinstance(plan.get("claim"), str) and plan["claim"], "a sentence that says what is tested"),
        ("seeds", plan["seeds"] and _is_list(plan["seeds"], int), "a list of whole numbers, such as [0, 1, 2]"),
        ("config", _is_list(plan["config"], str), "a file or a list of files"),
        ("variants", isinstance(plan["variants"], dict) and plan["variants"], "names with their keys"),
        ("grid", isinstance(plan["grid"], dict), "configuration keys with lists of values"),
        ("baseline", isinstance(plan["baseline"], str | None), "a variant's name"),
    )
    for key, right, wanted in shapes:
        if not right:
            raise InputError(f"'{key}' must be {wanted}, not {plan.get(key)!r}")
    for key, values in plan["grid"].items():
        if not isinstance(values, list) or not values:
            raise InputError(f"grid: '{key}' must have a list of values, not {values!r}")
    plan["variants"] = {str(name): _settings(name, own) for name, own in plan["variants"].items()}
    if "" in plan["variants"] and not (plan["grid"] and plan["config"]):
        raise InputError("there must be 'variants', or a 'grid' and the 'config' that it varies")
    return plan


def _settings(name: Any, own: Any) -> Settings:
    """A variant's keys."""
    if name != "" and folder_name(name) != str(name):
        raise InputError(f"the variant '{name}' gets a folder of its name: call it '{folder_name(name)}'")
    own = {} if own is None else own
    if not isinstance(own, dict) or not all(isinstance(key, str) for key in own):
        raise InputError(f"the variant '{name}' must have keys, such as config, not {own!r}")
    files = _as_list(own.get("config", []))
    if not _is_list(files, str):
        raise InputError(f"the variant '{name}': 'config' must be a file or a list of files, not {files!r}")
    return own | ({"config": files} if files else {})


def _multiplied(variants: dict[str, Settings], grid: dict[str, list[Any]]) -> dict[str, Settings]:
    """Each variant with every combination of the grid's values."""
    multiplied: dict[str, Settings] = {}
    for name, settings in variants.items():
        for values in itertools.product(*grid.values()):
            varied = dict(zip(grid, values, strict=True))
            parts = [name] * bool(name) + [f"{k.rpartition('.')[2]}={as_argument(v)}" for k, v in varied.items()]
            variant = folder_name(", ".join(parts)) if varied else name
            if variant in multiplied:
                raise InputError(f"two variants would share the folder '{variant}'")
            multiplied[variant] = settings | varied
    return multiplied


def folder_name(name: str) -> str:
    """`name` without what a folder's name had better not have."""
    return re.sub(r"[^\w.,+=() -]", "_", str(name)).strip(" .") or "_"


def as_argument(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, str):
        return value
    return json.dumps(value)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(v, kind) and not isinstance(v, bool) for v in value)
