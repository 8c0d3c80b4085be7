"""A weighted sum of objectives, such as CLIP + FILIP, a row of tables 3 and 9 of SPARC (arXiv 2401.09865).

    L = sum_n weight_n L_n,   score = sum_n weight_n score_n,   map = sum_n weight_n map_n

Each objective keeps its own temperature. Scores and maps of different objectives need not be on the same scale (a
cosine lies in [-1, 1], SPARC's weights sum to 1), so the score or the map of a single objective can be chosen instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from patchword.errors import UserError
from patchword.features import Images, Texts
from patchword.objective import Objective


@final
class Sum(Objective):
    """A weighted sum of named objectives.

    Args:
        objectives: The objectives by name; a term `t` of the objective `n` is logged as `n/t`.
        weights: The weight of each named objective, in loss, score and map; 1 for those that are not listed.
        scored_by: The objective whose score is returned; null for the weighted sum.
        aligned_by: The objective whose map is returned; null for the weighted sum.
    """

    def __init__(
        self,
        objectives: dict[str, Objective],
        weights: dict[str, float] | None = None,
        scored_by: str | None = None,
        aligned_by: str | None = None,
    ) -> None:
        super().__init__()
        if not objectives:
            raise UserError("Sum's option objectives is empty: it needs at least one objective")
        for name in objectives:
            if not name.isidentifier():
                raise UserError(
                    f"Sum's objective {name!r}: a name must contain only letters, digits and underscores and must not "
                    "start with a digit"
                )
        asked: dict[str, list[str | None]] = {
            "weights": list(weights or {}),
            "scored_by": [scored_by],
            "aligned_by": [aligned_by],
        }
        for option, names in asked.items():
            for unknown in set(names) - {None, *objectives}:
                raise UserError(f"Sum's {option} has the unknown name {unknown!r}: use one of {', '.join(objectives)}")
        self.objectives = nn.ModuleDict(objectives)
        weights = {name: (weights or {}).get(name, 1.0) for name in objectives}
        self.weights = weights
        self.score_weights = weights if scored_by is None else {scored_by: 1.0}
        self.align_weights = weights if aligned_by is None else {aligned_by: 1.0}
        self.multi_positive = all(objective.multi_positive for objective in objectives.values())
        self.needs = tuple({need for objective in objectives.values() for need in objective.needs})
        self.uses_local_features = any(objectives[name].uses_local_features for name in self.score_weights)

    def build(self, embed_dim: int) -> None:
        """Build the parameters of every objective."""
        for name in self.weights:
            self.part(name).build(embed_dim)

    def forward(self, images: Images, texts: Texts) -> dict[str, Float[Tensor, ""]]:
        """The weighted loss terms of all objectives."""
        return {
            f"{name}/{term}": weight * value
            for name, weight in self.weights.items()
            for term, value in self.part(name)(images, texts).items()
        }

    def score(self, images: Images, texts: Texts) -> Float[Tensor, "I T"]:
        """The weighted sum of scores, or the score of `scored_by`."""
        return self._weighted(self.score_weights, lambda part: part.score(images, texts))

    def text_to_image_score(self, images: Images, texts: Texts) -> Float[Tensor, "I T"]:
        """The weighted sum of scores by which texts rank images, or the score of `scored_by`."""
        return self._weighted(self.score_weights, lambda part: part.text_to_image_score(images, texts))

    def scores(self, images: Images, texts: Texts) -> tuple[Float[Tensor, "I T"], Float[Tensor, "I T"]]:
        """Both scores, for which each objective computes its own two scores together."""
        score, text_score = self._weighted(self.score_weights, lambda part: torch.stack(part.scores(images, texts)))
        return score, text_score

    def align(self, images: Images, texts: Texts) -> Float[Tensor, "B L P"]:
        """The weighted sum of maps, or the map of `aligned_by`."""
        return self._weighted(self.align_weights, lambda part: part.align(images, texts))

    def _weighted(self, weights: dict[str, float], ask: Callable[[Objective], Tensor]) -> Tensor:
        first, *more = [weight * ask(self.part(name)) for name, weight in weights.items()]
        return sum(more, start=first)

    def part(self, name: str) -> Objective:
        """The objective of this name."""
        return cast(Objective, self.objectives[name])
