"""The configurations of objectives differ only in the objective and the name of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import patchword.objectives

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = [path for path in sorted(CONFIGS.glob("*.yaml")) if "variants" not in yaml.safe_load(path.read_text())]


def recipe(path: Path) -> tuple[Any, str, dict[str, Any]]:
    """Return the objective, the name of the run, and all other settings, without those that only one objective has."""
    config = yaml.safe_load(path.read_text())
    name = config["trainer"]["logger"]["init_args"].pop("name")
    if name == "cosmos":
        del config["data"]["init_args"]["views"], config["model"]["teacher_momentum"]
    return config["model"].pop("objective"), name, config


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_only_the_objective_and_the_name_differ(path: Path) -> None:
    """All configurations of objectives have the same other settings, so that comparisons are fair."""
    _, name, rest = recipe(path)
    assert name == path.stem
    assert rest == recipe(CONFIGS / "sparc.yaml")[2]


def test_every_objective_has_a_configuration() -> None:
    """There is one configuration for every objective."""
    objectives = [recipe(path)[0] for path in FILES]
    named = {each if isinstance(each, str) else each["class_path"] for each in objectives}
    assert named == set(patchword.objectives.__all__)
