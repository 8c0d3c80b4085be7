"""All metrics that are measured on one split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from patchword.cached.batch import CachedBatch, embed_texts
from patchword.data.batch import Batch
from patchword.encoders.base import Encoder, Selection, Tokens
from patchword.features import Images, Texts
from patchword.maps.phrases import BASELINES, Area, Policy, Source, areas, phrase_maps, queries
from patchword.maps.sources import PLAIN_SOURCES, TokenSource
from patchword.metrics.baselines import Baselines
from patchword.metrics.bootstrap import ImageTotals
from patchword.metrics.grounding import Grounding
from patchword.metrics.hard_negatives import HardNegatives, pair_scores
from patchword.metrics.map_scores import map_scores
from patchword.metrics.position_priors import GRID, PRIORS, tell_absent
from patchword.metrics.retrieval import own_retrieval
from patchword.metrics.targets import Targets
from patchword.objective import Objective


@dataclass
class PhraseMaps:
    """The maps of a batch's phrases.

    Attributes:
        maps: One map per phrase for each source, including the baselines.
        kept: False for phrases whose tokens were cut off by the tokenizer; their maps are meaningless.
        grid: Rows and columns of a map.
        shapes: Rows and columns of the patches of each phrase's image, at the top left of the map. Other values of the
            map have no meaning.
    """

    maps: dict[str, Float[Tensor, "N P"]]
    kept: Bool[Tensor, " N"]
    grid: tuple[int, int]
    shapes: Int[Tensor, "N 2"]


class Evaluation(nn.Module):
    """Retrieval, hard negatives, and grounding for every source of maps, including baselines.

    Args:
        encoder: Encodes hard negatives, and phrases if `query` is `alone`.
        objective: Its `score` ranks, and its `align` is one of the sources of maps.
        tokens: Which tokens the encoder selects.
        query: How phrases become maps; it is part of the metrics' names.
        baselines: The position priors of the training data, and the scores of baselines that earlier evaluations of
            the run measured; None for no priors.
        sources: The sources of maps, without the baselines.

    Attributes:
        totals: After `compute`, the totals of each image, for confidence intervals, by the first part of the names of
            their metrics: `retrieval`, `grounding/<query>/<source>` or `hard_negatives`.
    """

    totals: dict[str, ImageTotals]

    def __init__(
        self,
        encoder: Encoder,
        objective: Objective,
        tokens: Selection,
        query: Policy,
        baselines: Baselines | None = None,
        sources: Sequence[TokenSource] = PLAIN_SOURCES,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.objective = objective
        self.tokens = tokens
        self.query = query
        self.baselines = baselines or Baselines()
        self.retrieval = own_retrieval(objective)
        self.sources: tuple[Source, ...] = (*sources, *BASELINES)
        priors = () if self.baselines.priors is None else PRIORS
        self.grounding = nn.ModuleDict({source: Grounding() for source in (*self.sources, *priors)})
        self.hard_negatives = HardNegatives()

    def update(self, batch: Batch, images: Images, texts: Texts, tokens: Tokens) -> PhraseMaps:
        """Add a batch and return the maps of its phrases.

        Args:
            batch: The batch.
            images: Its embedded images.
            texts: Its embedded captions.
            tokens: Its tokenized captions.
        """
        self.retrieval.update(images, texts, batch.caption_image, batch.ids)
        asked = queries(self.query, batch, images, texts, tokens, self.encoder, self.tokens)
        maps: dict[str, Tensor] = {source: phrase_maps(source, self.objective, asked) for source in self.sources}
        phrases = PhraseMaps(maps, asked.kept, images.grid, asked.images.shapes)
        if batch.phrase_mask is not None:
            for area in areas(phrases.shapes, phrases.grid):
                self._update_grounding(batch, phrases, area)
        if batch.negatives:
            self._update_negatives(batch, images, texts)
        return phrases

    def _update_grounding(self, batch: Batch, phrases: PhraseMaps, area: Area) -> None:
        targets = Targets.of_batch(batch, phrases.kept, area)
        own = {source: area.crop(maps) for source, maps in phrases.maps.items()}
        scores: dict[str, Tensor] = {}
        for source, maps in own.items():
            if source in BASELINES:
                scores[source] = self.baselines.scores(source, maps, area.grid, targets)
                continue
            # The own maps of some objectives are the cosines.
            same = (scores[other] for other in scores if torch.equal(own[other], maps))
            found = next(same, None)
            scores[source] = map_scores(maps, area.grid, targets) if found is None else found
        if (priors := self.baselines.priors) is None:
            tell_absent()
        else:
            for prior in PRIORS:
                maps = priors.maps(prior, targets.texts).to(targets.box.device)
                scores[prior] = self.baselines.scores(prior, maps, GRID, targets)
        for source, values in scores.items():
            cast(Grounding, self.grounding[source]).update(values, targets)

    def _update_negatives(self, batch: Batch, images: Images, texts: Texts) -> None:
        if isinstance(batch, CachedBatch) and batch.negative_words is not None:
            negatives, _ = embed_texts(self.encoder, batch.negatives, batch.negative_words, self.tokens)
        else:
            tokens = self.encoder.tokenize(batch.negatives).to(batch.ids.device)
            negatives = self.encoder.encode_texts(tokens, self.tokens)
        every = torch.arange(len(images), device=batch.ids.device)
        true = pair_scores(self.objective.score, images, texts[batch.first_caption], every)
        # A negative that the data lists twice for an image counts once.
        listed = list(zip(batch.negative_image.tolist(), batch.negatives, strict=True))
        once = torch.tensor(sorted({pair: k for k, pair in enumerate(listed)}.values()), device=batch.ids.device)
        image = batch.negative_image[once]
        false = pair_scores(self.objective.score, images, negatives[once], image)
        self.hard_negatives.update(true, false, image, batch.ids)

    def compute(self) -> dict[str, float]:
        """All values by name: `retrieval/...`, `grounding/<query>/<source>/...`, `hard_negatives/...`.

        Metrics without samples, such as grounding for a split without phrases, are left out.
        """
        parts: dict[str, Any] = {"retrieval": self.retrieval}
        parts |= {f"grounding/{self.query}/{source}": metric for source, metric in self.grounding.items()}
        if self.hard_negatives.update_called:
            parts["hard_negatives"] = self.hard_negatives
        found = {f"{part}/{name}": value for part, metric in parts.items() for name, value in metric.compute().items()}
        self.totals = {part: metric.totals for part, metric in parts.items() if metric.totals is not None}
        return {name: value for name, value in found.items() if not math.isnan(value)}


def split_name(loaders: Any, index: int, default: str) -> str:
    """The name of a split: its key if the data module returns a dictionary of loaders, otherwise `default`."""
    return list(loaders)[index] if isinstance(loaders, dict) else default
