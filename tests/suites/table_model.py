"""A model whose scores stand in a table, so that every number of a suite is known by hand; and one pass of a suite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from patchword.data.pixels import Preprocessing
from patchword.features import Images, Texts
from patchword.objective import Objective
from patchword.suites.base import Suite
from patchword.suites.files import Framing
from tests.suites.published_captions import STEP


class Table(Objective):
    """score(image i, text t) = rule(i, t): images are known by their colour, texts by what they say."""

    def __init__(self) -> None:
        super().__init__()
        self.rule: Callable[[int, str], float]
        self.captions: list[str] = []

    def encode_texts(self, captions: list[str]) -> tuple[Texts, Any]:
        first = len(self.captions)
        self.captions += captions
        number = torch.arange(first, first + len(captions), dtype=torch.float64)[:, None]
        texts = Texts(number, torch.zeros(len(captions), 1, 1), torch.zeros(len(captions), 1, dtype=torch.bool))
        return texts, SimpleNamespace(truncated=torch.tensor(["cut" in caption for caption in captions]))

    def encode_images(self, pixels: Tensor) -> Images:
        number = (pixels[:, 0].double().mean((1, 2)) / STEP).round()[:, None]
        return Images(number, torch.zeros(len(pixels), 1, 1), (1, 1))

    def forward(self, images: Images, texts: Texts) -> dict[str, Tensor]:
        raise NotImplementedError

    def score(self, images: Images, texts: Texts) -> Tensor:
        words = [self.captions[int(t)] for t in texts.pooled[:, 0]]
        rows = [[float(self.rule(int(i), word)) for word in words] for i in images.pooled[:, 0]]
        return torch.tensor(rows)

    def align(self, images: Images, texts: Texts) -> Tensor:
        raise NotImplementedError


def model(rule: Callable[[int, str], float], kind: type[Table] = Table) -> Any:
    """What a suite asks of an `AlignmentModule`; `rule` is the score of an image, by its number, with a caption."""
    table = kind()
    table.rule = rule
    return SimpleNamespace(objective=table, encode_texts=table.encode_texts, encode_images=table.encode_images)


FRAMING = Framing(Preprocessing("stretch"), 8)


def measure(suite: Suite, module: Any, batch: int = 4, order: Sequence[int] | None = None) -> dict[str, float]:
    """What `suite` measures of `module`.

    Args:
        suite: The suite.
        module: A model of tables, or a true one.
        batch: Samples per batch.
        order: The samples that a sampler hands out; None for each once.
    """
    framing = FRAMING if isinstance(module, SimpleNamespace) else Framing(Preprocessing("stretch"), 64)
    data = suite.read(framing)
    indices = range(len(data)) if order is None else order  # type: ignore[arg-type]
    evaluation = suite.evaluation(module)
    with torch.no_grad():
        for start in range(0, len(indices), batch):
            evaluation.update(suite.collate([data[i] for i in indices[start : start + batch]]))
    return evaluation.compute()
