"""A weighted sum of objectives, such as CLIP + FILIP, a row of tables 3 and 9 of SPARC (arXiv 2401.09865).

    L = sum_n weight_n L_n,   score = sum_n weight_n score_n,   map = sum_n weight_n map_n

Each objective keeps its own temperature. Scores and maps of different objectives need not be on one scale (a cosine
lies in [-1, 1], SPARC's weights sum to 1), so that one of them can be named to rank or to draw alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast, final

from jaxtyping import Float
from torch import Tensor, nn

from patchword.errors import InputError
from patchword.features import Images, Texts
from patchword.objective import Objective


@final
class Sum(Objective):
    """A weighted sum of named objectives.

    Args:
        objectives: The objectives by name; a term `t` of the objective `n` is logged as `n/t`.
        weights: The weight of each named objective, in loss, score and map; 1 for those that are not listed.
        scored_by: The one objective whose score ranks; null for the weighted sum.
        aligned_by: The one objective whose map is drawn; null for the weighted sum.
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
            raise InputError("Sum needs at least one objective")
        for name in objectives:
            if not name.isidentifier():
                raise InputError(f"Sum: an objective's name must be letters, digits and underscores, not {name!r}")
        asked: dict[str, list[str | None]] = {
            "weights": list(weights or {}),
            "scored_by": [scored_by],
            "aligned_by": [aligned_by],
        }
        for option, names in asked.items():
            for unknown in set(names) - {None, *objectives}:
                raise InputError(f"Sum's {option} names {unknown!r}; its objectives are {', '.join(objectives)}")
        self.objectives = nn.ModuleDict(objectives)
        weights = {name: (weights or {}).get(name, 1.0) for name in objectives}
        self.weights = weights
        self.score_weights = weights if scored_by is None else {scored_by: 1.0}
        self.align_weights = weights if aligned_by is None else {aligned_by: 1.0}
        self.many_captions = all(objective.many_captions for objective in objectives.values())
        self.local_score = any(objectives[name].local_score for name in self.score_weights)

    def setup(self, embed_dim: int) -> None:
        """Set up every objective."""
        for name in self.weights:
            self._named(name).setup(embed_dim)

    def forward(self, images: Images, texts: Texts) -> dict[str, Float[Tensor, ""]]:
        """The terms of all objectives, weighted."""
        return {
            f"{name}/{term}": weight * value
            for name, weight in self.weights.items()
            for term, value in self._named(name)(images, texts).items()
        }

    def score(self, images: Images, texts: Texts) -> Float[Tensor, "I T"]:
        """The weighted sum of scores, or one of them."""
        return self._weighted(self.score_weights, lambda part: part.score(images, texts))

    def text_score(self, images: Images, texts: Texts) -> Float[Tensor, "I T"]:
        """The weighted sum of scores by which texts rank images, or one of them."""
        return self._weighted(self.score_weights, lambda part: part.text_score(images, texts))

    def align(self, images: Images, texts: Texts) -> Float[Tensor, "B L P"]:
        """The weighted sum of maps, or one of them."""
        return self._weighted(self.align_weights, lambda part: part.align(images, texts))

    def _weighted(self, weights: dict[str, float], ask: Callable[[Objective], Tensor]) -> Tensor:
        first, *more = [weight * ask(self._named(name)) for name, weight in weights.items()]
        return sum(more, start=first)

    def _named(self, name: str) -> Objective:
        return cast(Objective, self.objectives[name])
