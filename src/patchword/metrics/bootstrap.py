"""Confidence intervals of metrics by a bootstrap over images.

The phrases of an image, and its captions, are not independent, so images are drawn and not phrases: as many images as
there are, with replacement, 1,000 times. The interval lies between the 2.5th and the 97.5th percentile of the metric
over these draws (the percentile interval of Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).
It says how much the metric of one trained model depends on the choice of images, and not how much training depends on
the seed. For retrieval, the images or captions that are drawn are the queries; the candidates stay the same.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

RESAMPLES = 1_000
LEVEL = 0.95


class ImageTotals:
    """The sums of values and of weights of each image, for metrics that are a ratio of both sums over images.

    Args:
        images: The number of images.
        image: The image of each entry (a phrase or a caption), from 0.
    """

    def __init__(self, images: int, image: Int[Tensor, " N"]) -> None:
        self.images = images
        self.image = image
        self._sums: dict[str, tuple[Float[Tensor, " I"], Float[Tensor, " I"]]] = {}

    def add(self, name: str, values: Float[Tensor, " N"], counted: Bool[Tensor, " N"] | None = None) -> None:
        """Add the mean of `values` over the entries that are counted; None counts all entries."""
        counted = torch.ones_like(values, dtype=torch.bool) if counted is None else counted
        nothing = torch.zeros(self.images, dtype=torch.float64, device=values.device)
        image = self.image[counted]
        sums = nothing.index_add(0, image, values[counted].double())
        self._sums[name] = sums, nothing.index_add(0, image, torch.ones_like(image, dtype=torch.float64))

    def add_ratio(self, name: str, sums: Shaped[Tensor, " I"], weights: Shaped[Tensor, " I"]) -> None:
        """Add a metric by the sums of values and of weights of each image."""
        self._sums[name] = sums.double(), weights.double()

    def means(self) -> dict[str, float]:
        """Each metric over all images; NaN for a metric without entries."""
        return {name: float(sums.sum() / weights.sum()) for name, (sums, weights) in self._sums.items()}

    def intervals(self) -> dict[str, tuple[float, float]]:
        """The interval of each metric that is a finite number, if there are two images or more."""
        return _bounds(self._drawn())

    def differences(self, other: ImageTotals) -> dict[str, tuple[float, float, float]]:
        """How much larger each metric is than in `other`, with the interval of this paired difference.

        Every draw of images is the same for both, so that what they have in common cancels. Metrics that are not
        finite in one of them are left out.

        Raises:
            ValueError: If `other` has another number of images.
        """
        if self.images != other.images:
            raise ValueError(f"differences are paired by image, but there are {self.images} and {other.images} images")
        own, others, means, other_means = self._drawn(), other._drawn(), self.means(), other.means()
        bounds = _bounds({name: own[name] - others[name] for name in own if name in others})
        return {name: (means[name] - other_means[name], *found) for name, found in bounds.items()}

    def _drawn(self) -> dict[str, Float[np.ndarray, " R"]]:
        """Each metric that is a finite number, for each draw of images; NaN for a draw without entries."""
        names = [name for name, mean in self.means().items() if np.isfinite(mean)]
        if self.images < 2 or not names:
            return {}
        sums, weights = (torch.stack([self._sums[name][i] for name in names], -1).cpu().numpy() for i in range(2))
        chance = np.full(self.images, 1 / self.images)
        drawn = np.random.default_rng(0).multinomial(self.images, chance, size=RESAMPLES).astype(float)
        with np.errstate(invalid="ignore"):
            found = (drawn @ sums) / (drawn @ weights)
        return dict(zip(names, found.T, strict=True))


def _bounds(drawn: dict[str, Float[np.ndarray, " R"]]) -> dict[str, tuple[float, float]]:
    """The percentile interval of each metric; draws without any image that has entries are left out."""
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    return {name: tuple(np.nanquantile(values, ends).tolist()) for name, values in drawn.items()}
