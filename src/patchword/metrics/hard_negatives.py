"""Does an image prefer its caption over captions that are wrong in one detail?

    per_negative   share of negatives that the true caption beats; 1/2 for a guess
    per_image      share of images whose true caption beats all its negatives; mean of 1 / (1 + n) for a guess

A tie fails (as in Winoground, Thrush et al., CVPR 2022, arXiv 2204.03162, equations 1 to 3: strict `>`). Scores that
differ by rounding only are a tie: a bag of words scores "a red cup, a blue book" and "a blue cup, a red book"
alike, and the order of additions must not decide.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from patchword.features import Images, Texts
from patchword.metrics.unique import first_of_each

_ROUNDING = 1e-5  # of the larger score: some hundred units in the last place of float32


class HardNegatives(Metric):
    """Accuracy against hard negatives, each sample id counted once.

    `compute` returns `per_negative`, `per_image`, `chance_per_negative`, `chance_per_image` (NaN without any
    negative), `negatives`, their number, and `images`, the number of images that have some.
    """

    full_state_update = False
    ids: list[Tensor]
    beaten: list[Tensor]
    negatives: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("ids", "beaten", "negatives"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(
        self,
        true: Float[Tensor, " I"],
        negative: Float[Tensor, " M"],
        negative_image: Int[Tensor, " M"],
        ids: Int[Tensor, " I"],
    ) -> None:
        """Compare scores.

        Args:
            true: The score of each image with its true caption.
            negative: The score of each negative with its image.
            negative_image: The image of each negative.
            ids: The sample id of each image.
        """
        won = beats(true[negative_image], negative).long()
        zeros = torch.zeros_like(ids)
        self.ids.append(ids)
        self.beaten.append(zeros.index_add(0, negative_image, won))
        self.negatives.append(zeros.index_add(0, negative_image, torch.ones_like(won)))

    def compute(self) -> dict[str, float]:
        """Both accuracies with their chance levels, and what they count."""
        if len(self.ids) == 0:
            beaten = number = torch.zeros(0)
        else:
            first = first_of_each(dim_zero_cat(self.ids))
            beaten, number = (dim_zero_cat(x)[first].double() for x in (self.beaten, self.negatives))
        beaten, number = beaten[number > 0], number[number > 0]
        return {
            "per_negative": float(beaten.sum() / number.sum()),
            "per_image": float((beaten == number).double().mean()),
            "chance_per_negative": 0.5 if len(number) else float("nan"),
            "chance_per_image": float((1 / (1 + number)).mean()),
            "negatives": float(number.sum()),
            "images": float(len(number)),
        }


def beats(true: Float[Tensor, " M"], negative: Float[Tensor, " M"]) -> Bool[Tensor, " M"]:
    """true > negative by more than rounding; False where either is NaN."""
    true, negative = true.float(), negative.float()
    return true - negative > _ROUNDING * torch.maximum(true.abs(), negative.abs())


def pair_scores(
    score: Callable[[Images, Texts], Float[Tensor, "I T"]], images: Images, texts: Texts, image: Int[Tensor, " M"]
) -> Float[Tensor, " M"]:
    """The score of each text with its one image, image[m], without the other pairs.

    Args:
        score: An objective's `score`.
        images: The images.
        texts: The M texts.
        image: The image of each text.
    """
    scores = texts.pooled.new_zeros(len(texts), dtype=torch.float32)
    for i in image.unique():
        own = (image == i).nonzero()[:, 0]
        scores[own] = score(images[i[None]], texts[own])[0].float()
    return scores
