"""Does an image score higher with its caption than with captions that are wrong in one detail?

    per_negative   share of negatives that score lower than the true caption; chance is 1/2
    per_image      share of images whose n negatives all score lower than the true caption; chance is the mean of
                   1 / (1 + n)

A tie counts as an error (as in Winoground, Thrush et al., CVPR 2022, arXiv 2204.03162, equations 1 to 3: strict `>`).
Scores that differ by rounding only are a tie (`metrics.ties`); `ties` counts the negatives that tie with the true
caption.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchword.features import Images, Texts
from patchword.metrics.bootstrap import ImageTotals
from patchword.metrics.per_sample import PerSample
from patchword.metrics.ties import beats, ties


class HardNegatives(PerSample):
    """Accuracy on hard negatives; each sample id counts once.

    `compute` returns `per_negative`, `per_image`, `chance_per_negative`, `chance_per_image` (NaN without any negative),
    `negatives`, the number of negatives, `ties`, the number of negatives that tie with the true caption up to rounding,
    and `images`, the number of images that have negatives.

    Attributes:
        totals: After `compute`, the totals of each image, for confidence intervals.
    """

    totals: ImageTotals | None = None

    def __init__(self) -> None:
        super().__init__(3)

    def update(  # type: ignore[override]
        self,
        true: Float[Tensor, " I"],
        negative: Float[Tensor, " M"],
        negative_image: Int[Tensor, " M"],
        ids: Int[Tensor, " I"],
    ) -> None:
        """Compare the scores of negatives with those of true captions.

        Args:
            true: The score of each image with its true caption.
            negative: The score of each negative with its image.
            negative_image: The image of each negative.
            ids: The sample id of each image.
        """
        own = true[negative_image]
        found = torch.stack([beats(own, negative), ties(own, negative), torch.ones_like(own, dtype=torch.bool)], -1)
        zeros = torch.zeros(len(ids), 3, dtype=torch.float64, device=ids.device)
        super().update(ids, zeros.index_add(0, negative_image, found.double()))

    def compute(self) -> dict[str, float]:  # type: ignore[override]
        """Both accuracies with their chance levels, and the numbers of negatives, ties and images."""
        beaten, tied, number = super().compute().unbind(-1)
        beaten, number = beaten[number > 0], number[number > 0]
        self.totals = ImageTotals(len(number), torch.arange(len(number), device=number.device))
        self.totals.add_ratio("per_negative", beaten, number)
        self.totals.add_ratio("per_image", beaten == number, torch.ones_like(number))
        return self.totals.means() | {
            "chance_per_negative": 0.5 if len(number) else float("nan"),
            "chance_per_image": float((1 / (1 + number)).mean()),
            "negatives": float(number.sum()),
            "ties": float(tied.sum()),
            "images": float(len(number)),
        }


def pair_scores(
    score: Callable[[Images, Texts], Float[Tensor, "I T"]], images: Images, texts: Texts, image: Int[Tensor, " M"]
) -> Float[Tensor, " M"]:
    """The objective's score of each text m with its image, image[m]; other pairs are not scored."""
    scores = texts.pooled.new_zeros(len(texts), dtype=torch.float32)
    for i in image.unique():
        own = (image == i).nonzero()[:, 0]
        scores[own] = score(images[i[None]], texts[own])[0].float()
    return scores
