"""A model with a table of scores, so that all metrics of a suite can be derived by hand, and one pass of a suite."""

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
    """Scores by score(image i, text t) = rule(i, t); images are identified by color, texts by their words."""

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
    """A stand-in for `AlignmentModule`; `rule` is the score of an image, by its number, with a caption."""
    table = kind()
    table.rule = rule
    return SimpleNamespace(objective=table, encode_texts=table.encode_texts, encode_images=table.encode_images)


FRAMING = Framing(Preprocessing("stretch"), 8)


def measure(suite: Suite, module: Any, batch: int = 4, order: Sequence[int] | None = None) -> dict[str, float]:
    """Run one pass of `suite` with `module` and return the metrics.

    Args:
        suite: The suite.
        module: A table model or a real model.
        batch: The number of samples per batch.
        order: The order of samples; None for each sample once.
    """
    framing = FRAMING if isinstance(module, SimpleNamespace) else Framing(Preprocessing("stretch"), 64)
    data = suite.read(framing)
    indices = range(len(data)) if order is None else order  # type: ignore[arg-type]
    evaluation = suite.evaluation(module)
    with torch.no_grad():
        for start in range(0, len(indices), batch):
            evaluation.update(suite.collate([data[i] for i in indices[start : start + batch]]))
    return evaluation.compute()


def measure_share(suite: Suite, module: Any, batch: int, rank: int) -> dict[str, float]:
    """Run the pass of one of two ranks; the shorter share repeats the first sample, as Lightning's sampler does."""
    number = len(suite.read(FRAMING))
    return measure(suite, module, batch, [*range(number), 0][: number + number % 2][rank::2])
