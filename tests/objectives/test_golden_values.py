"""Golden values of objectives that have no golden values of their authors.

They are the values of the loops in the objectives' own test files, on embeddings and parameters that do not depend on a
random generator. A change of a loop together with its objective is seen here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from patchword import Images, Objective, Texts
from patchword.objectives import FGCLIP, FGCLIP2, FLAIR, NegCLIP, SuperCLIP
from tests.objectives.test_beta_clip import regular, sines
from tests.objectives.variants import DIM, VOCABULARY

OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "FGCLIP": lambda: FGCLIP(region_weight=1.0, negative_weight=1.0, temperature=0.2),
    "FGCLIP2": lambda: FGCLIP2(fine_temperature=0.3, neighbors=1, similarity_limit=0.9),
    "FLAIR": lambda: FLAIR(heads=2, temperature=0.2, bias=-1.5),
    "NegCLIP": lambda: NegCLIP(temperature=0.2),
    "SuperCLIP": lambda: SuperCLIP(vocabulary=VOCABULARY, temperature=0.2),
}
GOLDEN = {
    "FGCLIP": {"global": 2.3972436018089667, "region": 0.9983647544442017, "negative": 2.06511472012471},
    "FGCLIP2": {
        "global": 11.926322935179662,
        "region": 0.18952859396324578,
        "text": 0.022177043739790736,
        "negative": 2.3299066353519935,
        "batch_negative": 0.6637786168973795,
        "rank": 0.16930524568617775,
    },
    "FLAIR": {"global": 1.7374052782421652, "text_conditioned": 0.6813513376737628},
    "NegCLIP": {"global": 2.934255828335551},
    "SuperCLIP": {"global": 2.3972436018089667, "classification": 3.711690031216442},
}


def complete() -> tuple[Images, Texts]:
    """Two images with regions and hard negatives, and their texts. The second image has one of both."""
    images, texts = regular(1)
    real = torch.tensor([[1.0, 1.0], [1.0, 0.0]], dtype=torch.float64)[..., None]
    regions = torch.tensor([[[0.5, 0.5, 0, 0], [0, 0.25, 0.25, 0.5]], [[0.25] * 4, [0.0] * 4]], dtype=torch.float64)
    images = replace(
        images,
        negatives=sines(2, 2, DIM, start=700) * real,
        regions=regions,
        region_texts=sines(2, 2, DIM, start=800) * real,
    )
    return images, replace(texts, ids=torch.tensor([[1, 2], [2, 3]]))


def of_sines(objective: Objective) -> Objective:
    """Parameters with more than one value become sines, each by another amount."""
    objective.build(DIM)
    objective.double()
    with torch.no_grad():
        for number, parameter in enumerate(objective.parameters()):
            if parameter.numel() > 1:
                parameter.copy_(sines(*parameter.shape, start=2000 + 100 * number))
    return objective


@pytest.mark.parametrize("name", OBJECTIVES)
def test_equals_golden(name: str) -> None:
    """All terms of the loss, with their default weights where none are given."""
    terms = of_sines(OBJECTIVES[name]())(*complete())
    assert {term: value.item() for term, value in terms.items()} == pytest.approx(GOLDEN[name], abs=1e-10)
