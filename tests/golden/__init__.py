"""Expected values, computed by an independent implementation in float64."""

import json
import math
from pathlib import Path
from typing import Any

import torch

from patchword import Images, Objective, Texts

GOLDEN = json.loads((Path(__file__).parent / "objectives.json").read_text())
GRIDS = {"tiny": (1, 3), "masked": (2, 2)}


def features(case: str, text_pool: str = "masked") -> tuple[Images, Texts]:
    """The inputs of `case` in float64."""
    data = GOLDEN["cases"][case]

    def tensor(name: str) -> torch.Tensor:
        return torch.tensor(data[name], dtype=torch.float64).requires_grad_()

    images = Images(tensor("image_global_mean"), tensor("patches"), GRIDS[case])
    mask = torch.tensor(data["mask"], dtype=torch.bool)
    return images, Texts(tensor(f"text_global_{text_pool}_mean"), tensor("tokens"), mask)


def entries(name: str) -> list[Any]:
    """The golden entries of one kind, as pytest parameters."""
    import pytest

    return [pytest.param(e, id=f"{e.get('case', '')}-{e.get('variant', i)}") for i, e in enumerate(objectives(name))]


def objectives(name: str) -> list[dict[str, Any]]:
    """The golden entries of one kind."""
    return GOLDEN["objectives"][name]


def with_scale(objective: Objective, inverse_temperature: float) -> Objective:
    """`objective` in float64 with its temperature set exactly."""
    objective.double()
    with torch.no_grad():
        objective.scale.log.fill_(math.log(inverse_temperature))
    return objective
