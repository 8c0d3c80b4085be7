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
        variants: For each name, what makes this variant: configuration keys, and under `config` the files it is made
            of, in the order in which they are merged.
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
        """The plan in a file.

        Raises:
            InputError: If it is not one; the message names the file and the key.
        """
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(content, dict):
            raise InputError(f"{path} is not a plan: it must have the keys name, claim and variants or grid")
        known = cls.__dataclass_fields__
        if unknown := [key for key in content if key not in known]:
            kind = "is a configuration of one run, not a plan" if "model" in unknown else f"has a key '{unknown[0]}'"
            raise InputError(f"{path} {kind}: a plan of compare has the keys {', '.join(known)}")
        if missing := [key for key in ("name", "claim") if not isinstance(content.get(key), str) or not content[key]]:
            raise InputError(f"{path}: '{missing[0]}' must be given, a text")
        if isinstance(content.get("config"), str):
            content["config"] = [content["config"]]
        plan = cls(**content)
        plan._check(path)
        plan._multiply(path)
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

    def _check(self, path: Path) -> None:
        """Raises InputError where a key holds what it cannot mean."""
        shapes = (
            ("name", folder_name(self.name) == self.name, "can be a folder's name"),
            ("seeds", _is_list(self.seeds, int) and len(self.seeds) > 0, "a list of whole numbers, such as [0, 1, 2]"),
            ("config", _is_list(self.config, str), "a file or a list of files"),
            ("variants", isinstance(self.variants, dict) and len(self.variants) > 0, "names with their keys"),
            ("grid", isinstance(self.grid, dict), "configuration keys with lists of values"),
        )
        for key, right, wanted in shapes:
            if not right:
                raise InputError(f"{path}: '{key}' must be {wanted}, not {getattr(self, key)!r}")
        for name, settings in self.variants.items():
            own = {} if settings is None else settings
            if not isinstance(own, dict):
                raise InputError(f"{path}: the variant '{name}' must have keys, such as config, not {own!r}")
            files = own.get("config", [])
            self.variants[name] = own | ({"config": [files] if isinstance(files, str) else files} if files else {})
        for key, values in self.grid.items():
            if not isinstance(values, list) or not values:
                raise InputError(f"{path}: grid: '{key}' must have a list of values, not {values!r}")
        if self.grid and self.variants == {"": {}} and not self.config:
            raise InputError(f"{path}: 'config' must name the configuration that the grid varies")

    def _multiply(self, path: Path) -> None:
        """Make variants of the grid's combinations."""
        multiplied: dict[str, Settings] = {}
        for name, settings in self.variants.items():
            for values in itertools.product(*self.grid.values()):
                varied = dict(zip(self.grid, values, strict=True))
                parts = [name] * bool(name) + [f"{k.rpartition('.')[2]}={_short(v)}" for k, v in varied.items()]
                multiplied[", ".join(parts)] = settings | varied
        self.variants, self.grid = multiplied, {}
        if "" in self.variants:
            raise InputError(f"{path}: a plan must have 'variants' or a 'grid'")
        folders = [folder_name(name) for name in self.variants]
        if doubled := [name for name, folder in zip(self.variants, folders, strict=True) if folders.count(folder) > 1]:
            raise InputError(f"{path}: the variants {' and '.join(map(repr, doubled))} would share a folder")
        if self.baseline is not None and self.baseline not in self.variants:
            raise InputError(f"{path}: the baseline '{self.baseline}' is no variant: {', '.join(self.variants)}")


def folder_name(name: str) -> str:
    """`name` without what a folder's name had better not have."""
    return re.sub(r"[^\w.,+=() -]", "_", str(name)).strip(" .") or "_"


def as_argument(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, str):
        return value
    return json.dumps(value)


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(v, kind) and not isinstance(v, bool) for v in value)
