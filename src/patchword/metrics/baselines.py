"""Baselines: maps that do not depend on the model. A run measures them once, and not again in each validation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

from jaxtyping import Float
from torch import Tensor

from patchword.data.pixels import Box
from patchword.metrics.map_scores import map_scores
from patchword.metrics.position_priors import PositionPriors, training_priors
from patchword.metrics.targets import Targets


class Baselines:
    """The position priors of the training data, and the scores of all baselines that were measured in a run.

    Args:
        boxes: A function that returns the phrases of the training data with their boxes; None if there are none. It is
            called when the priors are first needed.
    """

    def __init__(self, boxes: Callable[[], Iterable[tuple[str, Sequence[Box]]]] | None = None) -> None:
        self._boxes = boxes
        self._scores: dict[tuple[str, bytes], Float[Tensor, "N K"]] = {}

    @cached_property
    def priors(self) -> PositionPriors | None:
        """The mean maps of training phrases; None if the training data has no boxes."""
        return None if self._boxes is None else training_priors(self._boxes())

    def scores(
        self, source: str, maps: Float[Tensor, "N P"], grid: tuple[int, int], targets: Targets
    ) -> Float[Tensor, "N K"]:
        """Return the scores of a batch of phrases. If phrases or regions are new, their maps are measured.

        Args:
            source: The name of the baseline, whose maps depend only on the phrases.
            maps: The maps of the phrases.
            grid: Rows and columns of the maps.
            targets: The phrases and their regions.
        """
        key = f"{source} {grid}", targets.fingerprint
        if key not in self._scores:
            self._scores[key] = map_scores(maps, grid, targets)
        return self._scores[key]
