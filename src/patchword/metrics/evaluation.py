"""Everything that is measured on one split."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from patchword.cached.batch import CachedBatch, embed_texts
from patchword.data.batch import Batch
from patchword.encoders.base import Encoder, Selection, Tokens
from patchword.features import Images, Texts
from patchword.maps import SOURCES, Policy, phrase_maps, queries
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
        encoder: Encodes hard negatives, and phrases where `query` asks for them alone.
        objective: Whose `score` ranks and whose `align` is one of the sources.
        tokens: The tokens that `encoder` selects.
        query: How phrases become maps; part of the metrics' names.
    """

    def __init__(self, encoder: Encoder, objective: Objective, tokens: Selection, query: Policy) -> None:
        super().__init__()
        self.encoder = encoder
        self.objective = objective
        self.tokens = tokens
        self.query = query
        own = type(objective).text_score is not Objective.text_score
        text_score = objective.text_score if own else None
        self.retrieval = Retrieval(objective.score, objective.local_score, text_score=text_score)
        self.grounding = nn.ModuleDict({source: Grounding() for source in SOURCES})
        self.hard_negatives = HardNegatives()

    def update(self, batch: Batch, images: Images, texts: Texts, tokens: Tokens) -> PhraseMaps:
        """Add a batch; returns its phrases' maps.

        Args:
            batch: The batch.
            images: Its embedded images.
            texts: Its embedded captions.
            tokens: Its tokenized captions.
        """
        self.retrieval.update(images, texts, batch.caption_image, batch.ids)
        asked = queries(self.query, batch, images, texts, tokens, self.encoder, self.tokens)
        maps: dict[str, Tensor] = {source: phrase_maps(source, self.objective, asked) for source in SOURCES}
        if batch.phrase_mask is not None:
            for source, metric in self.grounding.items():
                cast(Grounding, metric).update(maps[source], images.grid, batch, asked.kept)
        if batch.negatives:
            self._update_negatives(batch, images, texts)
        return PhraseMaps(maps, asked.kept, images.grid)

    def _update_negatives(self, batch: Batch, images: Images, texts: Texts) -> None:
        if isinstance(batch, CachedBatch) and batch.negative_words is not None:
            negatives, _ = embed_texts(self.encoder, batch.negatives, batch.negative_words, self.tokens)
        else:
            tokens = self.encoder.tokenize(batch.negatives).to(batch.ids.device)
            negatives = self.encoder.encode_texts(tokens, self.tokens)
        every = torch.arange(len(images), device=batch.ids.device)
        true = pair_scores(self.objective.score, images, texts[batch.first_caption], every)
        false = pair_scores(self.objective.score, images, negatives, batch.negative_image)
        self.hard_negatives.update(true, false, batch.negative_image, batch.ids)

    def compute(self) -> dict[str, float]:
        """All values by name: `retrieval/...`, `grounding/<query>/<source>/...`, `hard_negatives/...`.

        What a split has no samples for (no phrases, no negatives) is left out.
        """
        found = {f"retrieval/{name}": value for name, value in self.retrieval.compute().items()}
        for source, metric in self.grounding.items():
            values = cast(Grounding, metric).compute()
            found |= {f"grounding/{self.query}/{source}/{name}": value for name, value in values.items()}
        if self.hard_negatives.update_called:
            found |= {f"hard_negatives/{name}": value for name, value in self.hard_negatives.compute().items()}
        return {name: value for name, value in found.items() if not math.isnan(value)}


def split_name(loaders: Any, index: int, default: str) -> str:
    """The name of a split: its key, where the data module gives a dictionary of loaders."""
    return list(loaders)[index] if isinstance(loaders, dict) else default
