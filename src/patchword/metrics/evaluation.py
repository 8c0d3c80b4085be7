"""Everything that is measured on one split."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from patchword.data.batch import Batch
from patchword.features import Images, Texts
from patchword.maps import SOURCES
from patchword.metrics.grounding import Grounding
from patchword.metrics.hard_negatives import HardNegatives, pair_scores
from patchword.metrics.retrieval import Retrieval
from patchword.objective import Objective


@dataclass
class PhraseMaps:
    """The maps of a batch's phrases.

    Attributes:
        maps: For each source, baselines included, a map per phrase.
        kept: False for phrases whose tokens were cut off by the tokenizer: their maps mean nothing.
        grid: Rows and columns of a map.
    """

    maps: dict[str, Float[Tensor, "N P"]]
    kept: Bool[Tensor, " N"]
    grid: tuple[int, int]


class Evaluation(nn.Module):
    """Retrieval, hard negatives, and grounding from every source of maps beside two baselines.

    Args:
        objective: Whose `score` ranks.
        query: How phrases become maps; part of the metrics' names.
    """

    def __init__(self, objective: Objective, query: str) -> None:
        super().__init__()
        self.score = objective.score
        self.query = query
        self.retrieval = Retrieval(objective.score, objective.local_score)
        self.grounding = nn.ModuleDict({source: Grounding() for source in SOURCES})
        self.hard_negatives = HardNegatives()

    def update(self, batch: Batch, images: Images, texts: Texts, negatives: Texts, found: PhraseMaps) -> None:
        """Add a batch.

        Args:
            batch: The batch.
            images: Its embedded images.
            texts: Its embedded captions.
            negatives: Its embedded hard negatives.
            found: Its phrases' maps.
        """
        self.retrieval.update(images, texts, batch.caption_image, batch.ids)
        for source, metric in self.grounding.items():
            cast(Grounding, metric).update(found.maps[source], found.grid, batch, found.kept)
        every = torch.arange(len(images), device=batch.ids.device)
        first = texts[torch.searchsorted(batch.caption_image, every)]
        true = pair_scores(self.score, images, first, every)
        false = pair_scores(self.score, images, negatives, batch.negative_image)
        self.hard_negatives.update(true, false, batch.negative_image, batch.ids)

    def compute(self) -> dict[str, float]:
        """All values by name: `retrieval/...`, `grounding/<query>/<source>/...`, `hard_negatives/...`.

        What a split has no samples for (no phrases, no negatives) is left out.
        """
        found = {f"retrieval/{name}": value for name, value in self.retrieval.compute().items()}
        for source, metric in self.grounding.items():
            values = cast(Grounding, metric).compute()
            found |= {f"grounding/{self.query}/{source}/{name}": value for name, value in values.items()}
        found |= {f"hard_negatives/{name}": value for name, value in self.hard_negatives.compute().items()}
        return {name: value for name, value in found.items() if not math.isnan(value)}
